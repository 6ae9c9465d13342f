//! From a path to an inode.
//!
//! One loop over a stack of names yet to be walked; a symbolic link puts its own names on top. The
//! result keeps the directory and the last name apart from what they lead to, so that calls that make,
//! remove or replace a name use the same walk.

use super::{Caller, Fs, InodeId, NAME_MAX, Node};
use crate::Errno;
use alloc::vec::Vec;

/// The longest path, with its terminating zero.
pub const PATH_MAX: usize = 4096;
/// The most symbolic links in one walk.
pub const MAX_SYMLINKS: u32 = 40;

/// Whether a symbolic link at the end is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    Follow,
    Keep,
}

/// Where a path ends.
#[derive(Debug)]
pub(super) struct Found {
    /// The directory of the last name.
    pub(super) parent: InodeId,
    /// The last name; empty for "/", "." and "..", which cannot be made or removed.
    pub(super) name: Vec<u8>,
    /// What is there.
    pub(super) id: Option<InodeId>,
    /// The path ends in "/": it can only mean a directory.
    pub(super) slash: bool,
}

impl Found {
    /// What is there, or `ENOENT`.
    pub(super) fn existing(&self) -> Result<InodeId, Errno> {
        self.id.ok_or(Errno::ENOENT)
    }
}

impl Fs {
    /// The inode at `path`; symbolic links are followed, the last one too.
    pub fn resolve(&self, caller: &Caller<'_>, path: &[u8]) -> Result<InodeId, Errno> {
        self.walk(caller, path, Last::Follow)?.existing()
    }

    /// The inode at `path`, which may be a symbolic link itself.
    pub fn resolve_no_follow(&self, caller: &Caller<'_>, path: &[u8]) -> Result<InodeId, Errno> {
        self.walk(caller, path, Last::Keep)?.existing()
    }

    /// The directory at `path`, for chdir and for "at" calls. `ENOTDIR` if it is something else.
    pub fn resolve_dir(&self, caller: &Caller<'_>, path: &[u8]) -> Result<InodeId, Errno> {
        let id = self.resolve(caller, path)?;
        self.dir(id).map(|_| id)
    }

    /// readlinkat: where the symbolic link at `path` points to. `EINVAL` if it is none.
    pub fn read_link(&self, caller: &Caller<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let id = self.resolve_no_follow(caller, path)?;
        self.target(caller, id)
            .map(<[u8]>::to_vec)
            .ok_or(Errno::EINVAL)
    }

    pub(super) fn walk(
        &self,
        caller: &Caller<'_>,
        path: &[u8],
        last: Last,
    ) -> Result<Found, Errno> {
        check_path(path)?;
        let mut at = if path.starts_with(b"/") {
            self.root
        } else {
            caller.dir
        };
        let mut slash = path.ends_with(b"/");
        let mut links = 0;
        let mut names: Vec<Vec<u8>> = Vec::new();
        push_names(&mut names, path);
        while let Some(name) = names.pop() {
            let here = self.dir(at)?;
            let is_last = names.is_empty();
            if name == b"." || name == b".." {
                if name == b".." {
                    at = here.parent;
                }
                continue;
            }
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            let Some(next) = here.find(&name) else {
                if !is_last {
                    return Err(Errno::ENOENT);
                }
                return Ok(Found {
                    parent: at,
                    name,
                    id: None,
                    slash,
                });
            };
            match self.target(caller, next) {
                Some(target) if !is_last || last == Last::Follow || slash => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Errno::ELOOP);
                    }
                    check_path(target)?;
                    if target.starts_with(b"/") {
                        at = self.root;
                    }
                    slash |= is_last && target.ends_with(b"/");
                    push_names(&mut names, target);
                }
                _ if is_last => {
                    if slash {
                        self.dir(next)?;
                    }
                    return Ok(Found {
                        parent: at,
                        name,
                        id: Some(next),
                        slash,
                    });
                }
                _ => at = next,
            }
        }
        self.dir(at)?;
        Ok(Found {
            parent: at,
            name: Vec::new(),
            id: Some(at),
            slash,
        })
    }

    fn target<'a>(&'a self, caller: &Caller<'a>, id: InodeId) -> Option<&'a [u8]> {
        match &self.inode(id).ok()?.node {
            Node::Symlink(target) => Some(target),
            Node::ProcExe => Some(caller.exe),
            _ => None,
        }
    }
}

fn check_path(path: &[u8]) -> Result<(), Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if path.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(())
}

fn push_names(names: &mut Vec<Vec<u8>>, path: &[u8]) {
    let parts = path
        .rsplit(|byte| *byte == b'/')
        .filter(|part| !part.is_empty());
    names.extend(parts.map(<[u8]>::to_vec));
}
