//! Directories: names, and reading them in pieces (getdents64).
//!
//! Each name has a cookie, in the order of arrival. A reader goes on after the last cookie it saw, so
//! that names that come and go in between make it neither repeat nor miss the others.

use super::{Fs, InodeId, Node};
use crate::{Errno, uapi};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// "." and "..".
const DOT_COOKIES: u64 = 2;

#[derive(Debug)]
pub(super) struct Dir {
    pub(super) parent: InodeId,
    by_name: BTreeMap<Vec<u8>, (InodeId, u64)>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
    next_cookie: u64,
}

impl Dir {
    pub(super) const fn new(parent: InodeId) -> Self {
        Self {
            parent,
            by_name: BTreeMap::new(),
            by_cookie: BTreeMap::new(),
            next_cookie: DOT_COOKIES + 1,
        }
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<InodeId> {
        Some(self.by_name.get(name)?.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Gives `id` a name, and answers whose name it was.
    pub(super) fn insert(&mut self, name: &[u8], id: InodeId) -> Option<InodeId> {
        if let Some((old, _)) = self.by_name.get_mut(name) {
            return Some(core::mem::replace(old, id));
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.by_name.insert(name.to_vec(), (id, cookie));
        self.by_cookie.insert(cookie, name.to_vec());
        None
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<InodeId> {
        let (id, cookie) = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(id)
    }
}

impl Fs {
    /// getdents64: appends to `out`, up to `room` bytes in all, the names of `dir` after `position`, a
    /// `struct linux_dirent64` each, and answers the position for the next call. Nothing appended is
    /// the end. `EINVAL` if not even one name fits.
    pub fn read_dir(
        &self,
        dir: InodeId,
        position: u64,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<u64, Errno> {
        let names = self.dir(dir)?;
        let dots = [(1, &b"."[..], dir), (2, &b".."[..], names.parent)];
        let rest = names
            .by_cookie
            .range(position.max(DOT_COOKIES).saturating_add(1)..);
        let rest = rest.filter_map(|(cookie, name)| Some((*cookie, &name[..], names.find(name)?)));
        let mut reached = position;
        let start = out.len();
        for (cookie, name, id) in dots.into_iter().filter(|d| d.0 > position).chain(rest) {
            let size = (DIRENT_NAME + name.len() + 1).next_multiple_of(8);
            if out.len() - start + size > room {
                return if out.len() == start {
                    Err(Errno::EINVAL)
                } else {
                    Ok(reached)
                };
            }
            let end = out.len() + size;
            out.extend_from_slice(&id.number().to_le_bytes());
            out.extend_from_slice(&cookie.to_le_bytes());
            out.extend_from_slice(&(size as u16).to_le_bytes());
            out.push(self.dirent_type(id));
            out.extend_from_slice(name);
            out.resize(end, 0);
            reached = cookie;
        }
        Ok(reached)
    }

    /// `DT_…`: the kind of file, shifted out of its mode.
    fn dirent_type(&self, id: InodeId) -> u8 {
        self.inode(id)
            .map_or(0, |inode| ((inode.kind() & uapi::S_IFMT) >> 12) as u8)
    }

    /// The absolute path of a directory: getcwd. `ENOENT` if it was removed.
    pub fn path_of(&self, dir: InodeId) -> Result<Vec<u8>, Errno> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = dir;
        while at != self.root {
            let parent = self.dir(at)?.parent;
            let name = self
                .dir(parent)?
                .by_name
                .iter()
                .find(|(_, entry)| entry.0 == at);
            names.push(name.ok_or(Errno::ENOENT)?.0);
            at = parent;
        }
        if names.is_empty() {
            return Ok(b"/".to_vec());
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }

    /// Whether `dir` is `id` or lies below it.
    pub(super) fn is_below(&self, dir: InodeId, id: InodeId) -> bool {
        let mut at = dir;
        loop {
            if at == id {
                return true;
            }
            match self.inode(at).map(|inode| &inode.node) {
                Ok(Node::Dir(here)) if here.parent != at => at = here.parent,
                _ => return false,
            }
        }
    }
}

/// `offsetof(struct linux_dirent64, d_name)`.
const DIRENT_NAME: usize = 19;
