//! Sockets: AF_UNIX, SOCK_STREAM. Others answer what Linux answers without the family.

use alloc::sync::Arc;

use umbra_arm64::Hva;
use umbra_linux::fs::Caller;
use umbra_linux::socket::{NAME_MAX, name_of};
use umbra_linux::{Errno, Events, uapi};

use super::{Args, descriptor, int, io, user};
use crate::file::{Call, Description, File, block_on};
use crate::files::socket::{Name, Socket};
use crate::files::tree;

/// Whether a kind is one that is there; flags in it are cut off. `ESOCKTNOSUPPORT`.
fn check(domain: u64, kind: u64, protocol: u64) -> Result<u32, Errno> {
    let flags = kind as u32 & (uapi::O_NONBLOCK | uapi::O_CLOEXEC);
    if domain as u32 != u32::from(uapi::AF_UNIX) {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind as u32 & !flags != uapi::SOCK_STREAM {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    // PF_UNIX is a protocol of its own.
    if !matches!(int(protocol), 0 | 1) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Ok(flags)
}

fn install(call: &Call<'_>, socket: Arc<Socket>, flags: u32) -> Result<u32, Errno> {
    let status = uapi::O_RDWR | flags & uapi::O_NONBLOCK;
    let cloexec = flags & uapi::O_CLOEXEC != 0;
    call.process
        .install_description(Description::new(socket, status), cloexec)
}

pub(super) fn socket(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = check(a[0], a[1], a[2])?;
    install(call, Socket::new(), flags).map(u64::from)
}

pub(super) fn socketpair(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = check(a[0], a[1], a[2])?;
    let (one, two) = Socket::pair()?;
    let forget = |fd| drop(call.process.files().lock().remove(fd));
    let one = install(call, one, flags)?;
    let two = install(call, two, flags).inspect_err(|_| forget(one))?;
    user::write(call, a[3], &[one, two]).inspect_err(|_| {
        forget(one);
        forget(two);
    })?;
    Ok(0)
}

/// The open file of a descriptor, and the socket it is. `ENOTSOCK`.
pub(super) fn socket_of(
    call: &Call<'_>,
    fd: u64,
) -> Result<(Arc<Description>, Arc<Socket>), Errno> {
    let description = call.process.description(descriptor(fd)?)?;
    let file: Arc<dyn core::any::Any + Send + Sync> = description.file.clone();
    let socket = file.downcast::<Socket>().map_err(|_| Errno::ENOTSOCK)?;
    Ok((description, socket))
}

/// Reads an address and runs `f` on its name.
fn with_name<R>(
    call: &Call<'_>,
    at: u64,
    len: u64,
    f: impl FnOnce(&[u8]) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let len = usize::try_from(int(len)).map_err(|_| Errno::EINVAL)?;
    if len > NAME_MAX + 2 {
        return Err(Errno::EINVAL);
    }
    let mut address = user::buffer(len)?;
    call.process.mm().read_bytes(Hva::new(at), &mut address)?;
    f(name_of(&address)?)
}

/// Runs `f` on the tree, on behalf of the caller.
fn in_tree<R>(
    call: &Call<'_>,
    f: impl FnOnce(&mut umbra_linux::fs::Fs, &Caller<'_>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    call.process
        .with_paths(|paths| tree::with(|fs| f(fs, &paths.caller())))?
}

pub(super) fn bind(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (_, socket) = socket_of(call, a[0])?;
    let name = with_name(call, a[1], a[2], |name| {
        if name[0] == 0 {
            return Ok(Name::Abstract(name.to_vec()));
        }
        let id = in_tree(call, |fs, caller| {
            let id = fs.make_socket(caller, name).map_err(|errno| match errno {
                Errno::EEXIST => Errno::EADDRINUSE,
                other => other,
            })?;
            fs.hold(id)?;
            Ok(id)
        })?;
        Ok(Name::Node(id))
    })?;
    socket.bind(name)?;
    Ok(0)
}

pub(super) fn listen(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (_, socket) = socket_of(call, a[0])?;
    socket.listen(int(a[1]))?;
    Ok(0)
}

pub(super) fn connect(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (_, socket) = socket_of(call, a[0])?;
    let name = with_name(call, a[1], a[2], |name| {
        if name[0] == 0 {
            return Ok(Name::Abstract(name.to_vec()));
        }
        in_tree(call, |fs, caller| fs.resolve(caller, name)).map(Name::Node)
    })?;
    socket.connect(&name)?;
    Ok(0)
}

/// accept4; accept has no flags.
pub(super) fn accept4(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[3] as u32;
    if flags & !(uapi::O_NONBLOCK | uapi::O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let (description, listener) = socket_of(call, a[0])?;
    let socket = block_on(call, &description, || listener.accept())?;
    let fd = install(call, socket, flags)?;
    if a[1] != 0 {
        write_address(call, a[1], a[2])?;
    }
    Ok(fd.into())
}

/// An address without a name: what the other side of most connections has.
fn write_address(call: &Call<'_>, at: u64, len_at: u64) -> Result<(), Errno> {
    let room: u32 = user::read(call, len_at)?;
    let family = uapi::AF_UNIX.to_le_bytes();
    let count = (room as usize).min(family.len());
    call.process
        .mm()
        .write_bytes(Hva::new(at), family.get(..count).unwrap_or(&[]))?;
    user::write(call, len_at, &(family.len() as u32))
}

/// getsockname, getpeername: the family; names are not kept to be told.
pub(super) fn name(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    socket_of(call, a[0])?;
    write_address(call, a[1], a[2])?;
    Ok(0)
}

pub(super) fn shutdown(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (_, socket) = socket_of(call, a[0])?;
    socket.shutdown(a[1] as u32)?;
    Ok(0)
}

/// setsockopt: buffers have one size, and there is nothing else to set.
pub(super) fn set_option(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    socket_of(call, a[0])?;
    if a[1] as u32 == uapi::SOL_SOCKET {
        Ok(0)
    } else {
        Err(Errno::ENOPROTOOPT)
    }
}

pub(super) fn get_option(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    socket_of(call, a[0])?;
    let value: u32 = match (a[1] as u32, a[2] as u32) {
        (uapi::SOL_SOCKET, uapi::SO_ERROR) => 0,
        (uapi::SOL_SOCKET, uapi::SO_TYPE) => uapi::SOCK_STREAM,
        _ => return Err(Errno::ENOPROTOOPT),
    };
    let room: u32 = user::read(call, a[4])?;
    if room < 4 {
        return Err(Errno::EINVAL);
    }
    user::write(call, a[3], &value)?;
    user::write(call, a[4], &4u32)?;
    Ok(0)
}

/// sendto without an address: write. A signal for a side that is gone is not sent if MSG_NOSIGNAL says
/// so.
pub(super) fn send(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_transfer(call, a, Events::OUT)?;
    io::write(call, a)
}

/// recvfrom: read.
pub(super) fn receive(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_transfer(call, a, Events::IN)?;
    io::read(call, a)
}

/// What the flags ask, as far as it can be seen before. `EOPNOTSUPP`: other flags, or an address.
fn check_transfer(call: &Call<'_>, a: Args, wanted: Events) -> Result<(), Errno> {
    let (_, socket) = socket_of(call, a[0])?;
    let flags = a[3] as u32;
    if a[4] != 0 || flags & !(uapi::MSG_DONTWAIT | uapi::MSG_NOSIGNAL) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let ready = socket.readiness().events;
    let gone = ready.contains(Events::HUP) && wanted == Events::OUT;
    if flags & uapi::MSG_NOSIGNAL != 0 && gone {
        return Err(Errno::EPIPE);
    }
    if flags & uapi::MSG_DONTWAIT != 0 && !gone && !ready.contains(wanted) {
        return Err(Errno::EAGAIN);
    }
    Ok(())
}
