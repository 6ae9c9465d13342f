//! Names that come, go and move: mkdirat, unlinkat, renameat2, symlinkat, linkat.

use super::dir::Dir;
use super::path::{Found, Last, PATH_MAX};
use super::{Caller, Device, Fs, InodeId, Node};
use crate::{Errno, uapi};

/// The most names of one file.
const MAX_LINKS: u32 = 65_000;

impl Fs {
    /// mkdirat. `EEXIST` if there is anything by that name.
    pub fn make_dir(
        &mut self,
        caller: &Caller<'_>,
        path: &[u8],
        mode: u32,
    ) -> Result<InodeId, Errno> {
        let found = self.walk(caller, path, Last::Keep)?;
        let dir = Node::Dir(Dir::new(found.parent));
        self.make_named(&found, dir, mode & !caller.umask & 0o1777)
    }

    /// symlinkat. `ENOENT` for an empty target, `ENAMETOOLONG` for one that no path can be.
    pub fn make_symlink(
        &mut self,
        caller: &Caller<'_>,
        path: &[u8],
        target: &[u8],
    ) -> Result<InodeId, Errno> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let found = self.walk(caller, path, Last::Keep)?;
        if found.slash && found.id.is_none() {
            return Err(Errno::ENOENT);
        }
        self.make_named(&found, Node::Symlink(target.to_vec()), 0o777)
    }

    /// mknodat, for a character device.
    pub fn make_device(
        &mut self,
        caller: &Caller<'_>,
        path: &[u8],
        device: Device,
        mode: u32,
    ) -> Result<InodeId, Errno> {
        let found = self.walk(caller, path, Last::Keep)?;
        self.make_named(&found, Node::Device(device), mode)
    }

    /// bind: the name of a socket. `EEXIST` if there is anything by that name.
    pub fn make_socket(&mut self, caller: &Caller<'_>, path: &[u8]) -> Result<InodeId, Errno> {
        let found = self.walk(caller, path, Last::Keep)?;
        self.make_named(&found, Node::Socket, 0o777 & !caller.umask)
    }

    /// linkat: a further name for the file `id`. `EPERM` for a directory.
    pub fn link(&mut self, id: InodeId, caller: &Caller<'_>, path: &[u8]) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        if matches!(inode.node, Node::Dir(_)) {
            return Err(Errno::EPERM);
        }
        if inode.links == 0 {
            return Err(Errno::ENOENT);
        }
        if inode.links >= MAX_LINKS {
            return Err(Errno::EMLINK);
        }
        let found = self.walk(caller, path, Last::Keep)?;
        if found.id.is_some() {
            return Err(Errno::EEXIST);
        }
        if found.slash {
            return Err(Errno::ENOENT);
        }
        self.live_dir(found.parent)?;
        self.attach(&found, id)
    }

    /// unlinkat without AT_REMOVEDIR. The file stays as long as it is held. `EISDIR` for a directory.
    pub fn unlink(&mut self, caller: &Caller<'_>, path: &[u8]) -> Result<(), Errno> {
        let found = self.walk(caller, path, Last::Keep)?;
        let id = found.existing()?;
        if self.dir(id).is_ok() {
            return Err(Errno::EISDIR);
        }
        self.detach(&found, id)
    }

    /// unlinkat with AT_REMOVEDIR. `ENOTEMPTY`; `EBUSY` for "/"; `EINVAL` for "."; `ENOTEMPTY` for "..".
    pub fn remove_dir(&mut self, caller: &Caller<'_>, path: &[u8]) -> Result<(), Errno> {
        let found = self.walk(caller, path, Last::Keep)?;
        let id = found.existing()?;
        let empty = self.dir(id)?.is_empty();
        if found.name.is_empty() {
            return Err(last_dot(path));
        }
        if !empty {
            return Err(Errno::ENOTEMPTY);
        }
        self.detach(&found, id)
    }

    /// renameat2, with no flags or RENAME_NOREPLACE. `EINVAL` for other flags, and for a directory that
    /// would go below itself.
    pub fn rename(
        &mut self,
        from: (&Caller<'_>, &[u8]),
        to: (&Caller<'_>, &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        if flags & !uapi::RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        let old = self.walk(from.0, from.1, Last::Keep)?;
        let new = self.walk(to.0, to.1, Last::Keep)?;
        let id = old.existing()?;
        if old.name.is_empty() || new.name.is_empty() {
            return Err(Errno::EBUSY);
        }
        let is_dir = self.dir(id).is_ok();
        if new.slash && !is_dir {
            return Err(Errno::ENOTDIR);
        }
        if is_dir && self.is_below(new.parent, id) {
            return Err(Errno::EINVAL);
        }
        self.live_dir(new.parent)?;
        match new.id {
            Some(_) if flags & uapi::RENAME_NOREPLACE != 0 => return Err(Errno::EEXIST),
            // Two names of one file: nothing happens, as POSIX wants it.
            Some(target) if target == id => return Ok(()),
            Some(target) => {
                self.check_replace(is_dir, target)?;
                self.detach(&new, target)?;
            }
            None => {}
        }
        self.hold(id)?;
        let moved = self.detach(&old, id).and_then(|()| self.attach(&new, id));
        self.release(id);
        moved
    }

    /// Makes an inode where the walk ended. `EEXIST` if something is there, `ENOENT` if the directory
    /// was removed.
    pub(super) fn make_named(
        &mut self,
        found: &Found,
        node: Node,
        mode: u32,
    ) -> Result<InodeId, Errno> {
        if found.id.is_some() {
            return Err(Errno::EEXIST);
        }
        self.live_dir(found.parent)?;
        let id = self.make(node, mode)?;
        self.attach(found, id)?;
        Ok(id)
    }

    fn check_replace(&self, with_dir: bool, target: InodeId) -> Result<(), Errno> {
        match (with_dir, self.dir(target)) {
            (false, Ok(_)) => Err(Errno::EISDIR),
            (true, Err(_)) => Err(Errno::ENOTDIR),
            (true, Ok(dir)) if !dir.is_empty() => Err(Errno::ENOTEMPTY),
            (true, Ok(_)) | (false, Err(_)) => Ok(()),
        }
    }

    /// Nothing can be made in a directory that was removed while someone held it.
    fn live_dir(&self, dir: InodeId) -> Result<(), Errno> {
        if self.inode(dir)?.links < 2 {
            Err(Errno::ENOENT)
        } else {
            Ok(())
        }
    }

    /// Gives `id` the name of `found`, which must be free.
    fn attach(&mut self, found: &Found, id: InodeId) -> Result<(), Errno> {
        self.dir_mut(found.parent)?.insert(&found.name, id);
        let now = self.now;
        let inode = self.inode_mut(id)?;
        inode.links += 1;
        inode.changed = now;
        if let Node::Dir(dir) = &mut inode.node {
            dir.parent = found.parent;
            self.inode_mut(found.parent)?.links += 1;
        }
        Ok(())
    }

    /// Takes the name of `found` from `id`.
    fn detach(&mut self, found: &Found, id: InodeId) -> Result<(), Errno> {
        self.dir_mut(found.parent)?
            .remove(&found.name)
            .ok_or(Errno::ENOENT)?;
        let now = self.now;
        let inode = self.inode_mut(id)?;
        inode.links = inode.links.saturating_sub(1);
        inode.changed = now;
        if matches!(inode.node, Node::Dir(_)) {
            let parent = self.inode_mut(found.parent)?;
            parent.links = parent.links.saturating_sub(1);
        }
        self.drop_if_unused(id);
        Ok(())
    }
}

fn last_dot(path: &[u8]) -> Errno {
    let mut names = path
        .rsplit(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    match names.next() {
        Some(b".") => Errno::EINVAL,
        Some(_) => Errno::ENOTEMPTY,
        None => Errno::EBUSY,
    }
}
