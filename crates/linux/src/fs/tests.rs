//! The tree as its users see it.

use super::*;
use crate::cpio::pack::{archive, simple};
use crate::cpio::{CpioError, Entry, Problem};
use proptest::prelude::*;
use std::boxed::Box;
use std::string::String;
use std::vec;

const LIMITS: Limits = Limits {
    pages: 64,
    inodes: 200,
};
const RDONLY: u32 = 0;

fn leak(entries: &[Entry<'_>]) -> &'static [u8] {
    Box::leak(archive(entries).into_boxed_slice())
}

fn tree() -> Fs {
    let entries = [
        simple(b".", 0o40755, b""),
        simple(b"bin/tool", 0o100755, b"#tool"),
        simple(b"etc", 0o40700, b""),
        simple(b"etc/text", 0o100644, b"hello"),
        simple(b"etc/link", 0o120777, b"text"),
        simple(b"abs", 0o120777, b"/etc/link"),
        simple(b"loop", 0o120777, b"loop"),
        simple(b"nowhere", 0o120777, b"etc/new"),
    ];
    Fs::from_initrd(leak(&entries), LIMITS).unwrap()
}

fn root(fs: &Fs) -> Caller<'static> {
    Caller {
        dir: fs.root(),
        exe: b"/bin/tool",
        umask: 0o022,
    }
}

fn open(fs: &mut Fs, path: &str, flags: u32) -> Result<OpenFile, Errno> {
    let caller = root(fs);
    fs.open(
        &caller,
        path.as_bytes(),
        OpenFlags::from_linux(flags)?,
        0o666,
    )
}

fn text(fs: &mut Fs, path: &str) -> Result<String, Errno> {
    let mut file = open(fs, path, RDONLY)?;
    let mut buf = [0; 100];
    let count = file.read(fs, &mut buf);
    fs.release(file.id);
    Ok(String::from_utf8_lossy(&buf[..count?]).into_owned())
}

fn write(fs: &mut Fs, path: &str, content: &str) {
    let mut file = open(fs, path, uapi::O_WRONLY | uapi::O_CREAT | uapi::O_TRUNC).unwrap();
    assert_eq!(file.write(fs, content.as_bytes()), Ok(content.len()));
    fs.release(file.id);
}

fn names(fs: &Fs, path: &str, room: usize) -> Vec<(String, u8)> {
    let dir = fs.resolve(&root(fs), path.as_bytes()).unwrap();
    let (mut at, mut all) = (0, Vec::new());
    loop {
        let mut out = Vec::new();
        at = fs.read_dir(dir, at, room, &mut out).unwrap();
        if out.is_empty() {
            return all;
        }
        assert!(out.len() <= room);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let len = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
            let name: Vec<u8> = rest[19..].iter().copied().take_while(|b| *b != 0).collect();
            all.push((String::from_utf8(name).unwrap(), rest[18]));
            rest = &rest[len..];
        }
    }
}

#[test]
fn the_initrd_is_read_without_a_copy_and_written_by_pages() {
    let mut fs = tree();
    assert_eq!(text(&mut fs, "/etc/text").unwrap(), "hello");
    assert_eq!(fs.usage().0, 0);
    let mut file = open(&mut fs, "etc/text", uapi::O_RDWR).unwrap();
    file.seek(&fs, -1, uapi::SEEK_END).unwrap();
    file.write(&mut fs, b"p!").unwrap();
    assert_eq!(text(&mut fs, "etc/text").unwrap(), "hellp!");
    assert_eq!(fs.usage().0, 1);
}

#[test]
fn paths_follow_links_dots_and_slashes() {
    let mut fs = tree();
    for path in [
        "abs",
        "etc/link",
        "./etc/../etc//text",
        "/../etc/text",
        "bin/../abs",
    ] {
        assert_eq!(text(&mut fs, path).as_deref(), Ok("hello"), "{path}");
    }
    for (path, errno) in [
        ("loop", Errno::ELOOP),
        ("etc/text/", Errno::ENOTDIR),
        ("etc/text/x", Errno::ENOTDIR),
        ("etc/text/..", Errno::ENOTDIR),
        ("abs/", Errno::ENOTDIR),
        ("none/x", Errno::ENOENT),
        ("nowhere", Errno::ENOENT),
        ("", Errno::ENOENT),
    ] {
        assert_eq!(text(&mut fs, path), Err(errno), "{path}");
    }
    let long = "x".repeat(NAME_MAX + 1);
    assert_eq!(text(&mut fs, &long), Err(Errno::ENAMETOOLONG));
    assert_eq!(
        text(&mut fs, &"/.".repeat(PATH_MAX)),
        Err(Errno::ENAMETOOLONG)
    );
    let etc = fs.resolve_dir(&root(&fs), b"etc").unwrap();
    let inside = Caller {
        dir: etc,
        ..root(&fs)
    };
    assert!(fs.resolve(&inside, b"text").is_ok());
    assert_eq!(fs.resolve_dir(&inside, b"text"), Err(Errno::ENOTDIR));
    assert_eq!(fs.path_of(etc), Ok(b"/etc".to_vec()));
}

#[test]
fn links_nest_up_to_the_limit() {
    let mut fs = tree();
    let caller = root(&fs);
    fs.make_symlink(&caller, b"l0", b"etc/text").unwrap();
    for n in 1..=MAX_SYMLINKS {
        let (path, target) = (std::format!("l{n}"), std::format!("l{}", n - 1));
        fs.make_symlink(&caller, path.as_bytes(), target.as_bytes())
            .unwrap();
    }
    assert_eq!(text(&mut fs, "l39").as_deref(), Ok("hello"));
    assert_eq!(text(&mut fs, "l40"), Err(Errno::ELOOP));
}

#[test]
fn each_open_flag_does_its_part() {
    let mut fs = tree();
    let mut code = |path: &str, flags| open(&mut fs, path, flags).map(|file| file.kind);
    assert_eq!(code("etc/new", RDONLY), Err(Errno::ENOENT));
    assert_eq!(
        code("etc/new", uapi::O_WRONLY | uapi::O_CREAT),
        Ok(Opened::File)
    );
    assert_eq!(
        code("etc/new", uapi::O_CREAT | uapi::O_EXCL),
        Err(Errno::EEXIST)
    );
    assert_eq!(code("etc/new", uapi::O_CREAT), Ok(Opened::File));
    assert_eq!(code("new/", uapi::O_CREAT), Err(Errno::EISDIR));
    assert_eq!(code("etc", uapi::O_WRONLY), Err(Errno::EISDIR));
    assert_eq!(code("etc", uapi::O_TRUNC), Err(Errno::EISDIR));
    assert_eq!(code("etc", uapi::O_DIRECTORY), Ok(Opened::Dir));
    assert_eq!(code("etc/text", uapi::O_DIRECTORY), Err(Errno::ENOTDIR));
    assert_eq!(code("etc/link", uapi::O_NOFOLLOW), Err(Errno::ELOOP));
    assert_eq!(
        code("etc/link", uapi::O_NOFOLLOW | uapi::O_PATH),
        Ok(Opened::Path)
    );
    assert_eq!(
        code("nowhere", uapi::O_CREAT | uapi::O_EXCL),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        code("dev/kvm", uapi::O_RDWR),
        Ok(Opened::Device(Device::Kvm))
    );
    assert_eq!(
        code("proc/meminfo", RDONLY),
        Ok(Opened::Proc(ProcFile::MemInfo))
    );
    assert_eq!(code("proc/meminfo", uapi::O_RDWR), Err(Errno::EACCES));
    let create = uapi::O_WRONLY | uapi::O_CREAT | uapi::O_TRUNC;
    assert_eq!(
        code("sys/kernel/debug/hwpoison/corrupt-pfn", create),
        Ok(Opened::Proc(ProcFile::CorruptPfn))
    );
    let types = "sys/kernel/debug/apei/einj/available_error_type";
    assert_eq!(code(types, create), Err(Errno::EACCES));
    assert_eq!(
        code("tmp", uapi::O_TMPFILE | uapi::O_RDWR),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        code("tmp", uapi::O_CREAT | uapi::O_DIRECTORY),
        Err(Errno::EINVAL)
    );
}

#[test]
fn creating_through_a_dangling_link_makes_its_target() {
    let mut fs = tree();
    write(&mut fs, "nowhere", "made");
    assert_eq!(text(&mut fs, "etc/new").as_deref(), Ok("made"));
    let id = fs.resolve(&root(&fs), b"etc/new").unwrap();
    assert_eq!(fs.stat(id).unwrap().mode, 0o100644, "umask");
}

#[test]
fn append_truncate_and_access_modes() {
    let mut fs = tree();
    let mut file = open(&mut fs, "etc/text", uapi::O_WRONLY | uapi::O_APPEND).unwrap();
    file.write(&mut fs, b"+").unwrap();
    assert_eq!(file.write_at(&mut fs, 0, b"+"), Ok(1));
    assert_eq!(file.read(&mut fs, &mut [0]), Err(Errno::EBADF));
    assert_eq!(text(&mut fs, "etc/text").unwrap(), "hello++");
    let mut reader = open(&mut fs, "etc/text", RDONLY).unwrap();
    assert_eq!(reader.write(&mut fs, b"x"), Err(Errno::EBADF));
    assert_eq!(reader.seek(&fs, -1, uapi::SEEK_SET), Err(Errno::EINVAL));
    assert_eq!(reader.seek(&fs, 0, 9), Err(Errno::EINVAL));
    open(&mut fs, "etc/text", uapi::O_WRONLY | uapi::O_TRUNC).unwrap();
    assert_eq!(text(&mut fs, "etc/text").unwrap(), "");
    assert_eq!(reader.flags.to_linux() & uapi::O_ACCMODE, 0);
    assert_eq!(
        file.flags.to_linux() & (uapi::O_ACCMODE | uapi::O_APPEND),
        uapi::O_WRONLY | uapi::O_APPEND
    );
    file.flags.set_status(uapi::O_NONBLOCK);
    assert!(file.flags.nonblock && !file.flags.append && file.flags.write);
}

#[test]
fn an_unlinked_file_lives_while_it_is_held() {
    let mut fs = tree();
    write(&mut fs, "tmp/x", "content");
    let mut file = open(&mut fs, "tmp/x", RDONLY).unwrap();
    fs.unlink(&root(&fs), b"tmp/x").unwrap();
    assert_eq!(text(&mut fs, "tmp/x"), Err(Errno::ENOENT));
    assert_eq!(fs.stat(file.id).unwrap().nlink, 0);
    let mut buf = [0; 7];
    assert_eq!((file.read(&mut fs, &mut buf), &buf), (Ok(7), b"content"));
    assert_eq!(fs.usage().0, 1);
    fs.release(file.id);
    assert_eq!(fs.usage().0, 0);
    assert_eq!(fs.stat(file.id), Err(Errno::ENOENT));
}

#[test]
fn directories_come_and_go() {
    let mut fs = tree();
    let c = root(&fs);
    let dir = fs.make_dir(&c, b"tmp/d", 0o777).unwrap();
    assert_eq!(fs.make_dir(&c, b"tmp/d", 0o777), Err(Errno::EEXIST));
    assert_eq!(fs.stat(dir).unwrap().mode, 0o40755);
    write(&mut fs, "tmp/d/f", "");
    assert_eq!(fs.remove_dir(&c, b"tmp/d"), Err(Errno::ENOTEMPTY));
    assert_eq!(fs.unlink(&c, b"tmp/d"), Err(Errno::EISDIR));
    assert_eq!(fs.remove_dir(&c, b"tmp/d/f"), Err(Errno::ENOTDIR));
    fs.unlink(&c, b"tmp/d/f").unwrap();
    fs.hold(dir).unwrap();
    fs.remove_dir(&c, b"tmp/d/").unwrap();
    assert_eq!(fs.path_of(dir), Err(Errno::ENOENT));
    assert_eq!(
        fs.make_dir(&Caller { dir, ..c }, b"x", 0o777),
        Err(Errno::ENOENT)
    );
    fs.release(dir);
    assert_eq!(fs.stat(dir), Err(Errno::ENOENT));
    assert_eq!(fs.remove_dir(&c, b"/"), Err(Errno::EBUSY));
    assert_eq!(fs.remove_dir(&c, b"tmp/."), Err(Errno::EINVAL));
    assert_eq!(fs.remove_dir(&c, b"tmp/.."), Err(Errno::ENOTEMPTY));
    let tmp = fs.resolve(&c, b"tmp").unwrap();
    assert_eq!(fs.stat(tmp).unwrap().nlink, 2);
}

#[test]
fn rename_replaces_moves_and_refuses() {
    let mut fs = tree();
    let c = root(&fs);
    let rename = |fs: &mut Fs, from: &str, to: &str| {
        fs.rename((&c, from.as_bytes()), (&c, to.as_bytes()), 0)
    };
    write(&mut fs, "tmp/a", "a");
    write(&mut fs, "tmp/b", "b");
    rename(&mut fs, "tmp/a", "tmp/b").unwrap();
    assert_eq!(text(&mut fs, "tmp/b").unwrap(), "a");
    assert_eq!(fs.usage().0, 1, "what was replaced is freed");
    fs.make_dir(&c, b"tmp/d", 0o755).unwrap();
    fs.make_dir(&c, b"tmp/d/e", 0o755).unwrap();
    assert_eq!(rename(&mut fs, "tmp/d", "tmp/d/e/f"), Err(Errno::EINVAL));
    assert_eq!(rename(&mut fs, "tmp/b", "tmp/d"), Err(Errno::EISDIR));
    assert_eq!(rename(&mut fs, "tmp/d", "tmp/b"), Err(Errno::ENOTDIR));
    assert_eq!(rename(&mut fs, "tmp/d/e", "etc"), Err(Errno::ENOTEMPTY));
    assert_eq!(rename(&mut fs, "tmp/b", "tmp/c/"), Err(Errno::ENOTDIR));
    assert_eq!(rename(&mut fs, "tmp/.", "tmp/c"), Err(Errno::EBUSY));
    assert_eq!(rename(&mut fs, "tmp/none", "tmp/c"), Err(Errno::ENOENT));
    rename(&mut fs, "tmp/d/e", "etc/e").unwrap();
    let e = fs.resolve(&c, b"etc/e/../text").unwrap();
    assert_eq!(
        fs.resolve(&c, b"etc/text"),
        Ok(e),
        "the parent is the new one"
    );
    assert_eq!(
        fs.rename((&c, b"tmp/b"), (&c, b"etc/e"), uapi::RENAME_NOREPLACE),
        Err(Errno::EEXIST)
    );
    assert_eq!(fs.rename((&c, b"tmp/b"), (&c, b"x"), 2), Err(Errno::EINVAL));
    fs.rename((&c, b"tmp/b"), (&c, b"tmp/b"), 0).unwrap();
    assert_eq!(text(&mut fs, "tmp/b").unwrap(), "a");
}

#[test]
fn hard_links_share_the_file() {
    let mut fs = tree();
    let c = root(&fs);
    write(&mut fs, "tmp/a", "a");
    let id = fs.resolve(&c, b"tmp/a").unwrap();
    fs.link(id, &c, b"tmp/b").unwrap();
    assert_eq!(fs.link(id, &c, b"tmp/b"), Err(Errno::EEXIST));
    assert_eq!(fs.link(fs.root(), &c, b"tmp/r"), Err(Errno::EPERM));
    assert_eq!(fs.stat(id).unwrap().nlink, 2);
    write(&mut fs, "tmp/b", "b");
    assert_eq!(text(&mut fs, "tmp/a").unwrap(), "b");
    fs.unlink(&c, b"tmp/a").unwrap();
    fs.unlink(&c, b"tmp/b").unwrap();
    assert_eq!(fs.link(id, &c, b"tmp/c"), Err(Errno::ENOENT));
}

#[test]
fn directories_are_read_in_pieces_of_any_size() {
    let fs = tree();
    let expected: Vec<(String, u8)> = [(".", 4), ("..", 4), ("text", 8), ("link", 10)]
        .map(|(n, t)| (n.into(), t))
        .into();
    for room in [24, 48, 4096] {
        assert_eq!(names(&fs, "etc", room), expected);
    }
    let etc = fs.resolve(&root(&fs), b"etc").unwrap();
    assert_eq!(fs.read_dir(etc, 0, 23, &mut Vec::new()), Err(Errno::EINVAL));
    assert!(names(&fs, "dev", 4096).contains(&("kvm".into(), 2)));
}

#[test]
fn names_that_go_while_a_directory_is_read_do_not_disturb_the_others() {
    let mut fs = tree();
    let c = root(&fs);
    for n in 0..10 {
        write(&mut fs, &std::format!("tmp/{n}"), "");
    }
    let tmp = fs.resolve(&c, b"tmp").unwrap();
    let mut at = 0;
    let mut removed = 0;
    loop {
        let mut out = Vec::new();
        at = fs.read_dir(tmp, at, 24, &mut out).unwrap();
        if out.is_empty() {
            break;
        }
        if out[19].is_ascii_digit() {
            fs.unlink(&c, &[b"tmp/", &out[19..20]].concat()).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 10);
}

#[test]
fn special_files_are_what_they_claim() {
    let fs = tree();
    let c = root(&fs);
    assert_eq!(
        fs.read_link(&c, b"proc/self/exe"),
        Ok(b"/bin/tool".to_vec())
    );
    assert_eq!(
        fs.resolve(&c, b"proc/self/exe"),
        fs.resolve(&c, b"bin/tool")
    );
    assert_eq!(fs.read_link(&c, b"etc/link"), Ok(b"text".to_vec()));
    assert_eq!(fs.read_link(&c, b"etc/text"), Err(Errno::EINVAL));
    let null = fs.stat(fs.resolve(&c, b"/dev/null").unwrap()).unwrap();
    assert_eq!((null.mode, null.rdev), (0o20666, 0x103));
    let tmp = fs.stat(fs.resolve(&c, b"tmp").unwrap()).unwrap();
    assert_eq!(tmp.mode, 0o41777);
}

#[test]
fn root_may_not_execute_what_nobody_may() {
    let fs = tree();
    let at = |path: &[u8]| fs.resolve(&root(&fs), path).unwrap();
    assert_eq!(fs.check_access(at(b"bin/tool"), Access::EXEC), Ok(()));
    assert_eq!(
        fs.check_access(at(b"etc/text"), Access::EXEC),
        Err(Errno::EACCES)
    );
    assert_eq!(
        fs.check_access(at(b"etc/text"), Access::READ | Access::WRITE),
        Ok(())
    );
    assert_eq!(fs.check_access(at(b"etc"), Access::EXEC), Ok(()));
}

#[test]
fn limits_are_enospc() {
    let mut fs = tree();
    let mut file = open(&mut fs, "tmp/big", uapi::O_RDWR | uapi::O_CREAT).unwrap();
    let page = [1; 4096];
    for _ in 0..LIMITS.pages {
        file.write(&mut fs, &page).unwrap();
    }
    assert_eq!(file.write(&mut fs, &page), Err(Errno::ENOSPC));
    fs.truncate(file.id, 4096).unwrap();
    file.position = 4096;
    assert_eq!(file.write(&mut fs, &page), Ok(4096));
    let made = (0..).take_while(|n| open(&mut fs, &std::format!("tmp/{n}"), uapi::O_CREAT).is_ok());
    assert!(made.count() < LIMITS.inodes);
}

#[test]
fn fallocate_extends_keeps_or_punches() {
    let mut fs = tree();
    let id = fs.resolve(&root(&fs), b"etc/text").unwrap();
    fs.allocate(id, uapi::FALLOC_FL_KEEP_SIZE, 0, 100).unwrap();
    assert_eq!(fs.len(id), Ok(5));
    fs.allocate(id, 0, 0, 8).unwrap();
    assert_eq!(text(&mut fs, "etc/text").unwrap(), "hello\0\0\0");
    fs.allocate(
        id,
        uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_KEEP_SIZE,
        1,
        2,
    )
    .unwrap();
    assert_eq!(text(&mut fs, "etc/text").unwrap(), "h\0\0lo\0\0\0");
    assert_eq!(fs.allocate(id, 0x20, 0, 8), Err(Errno::EOPNOTSUPP));
    assert_eq!(fs.allocate(id, 0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(fs.allocate(id, 0, MAX_FILE, 1), Err(Errno::EFBIG));
    assert_eq!(fs.allocate(id, 0, u64::MAX, 1), Err(Errno::EFBIG));
}

#[test]
fn times_move_with_what_changes() {
    let mut fs = tree();
    let later = Timespec { sec: 99, nsec: 7 };
    fs.set_time(later);
    write(&mut fs, "etc/text", "x");
    let stat = |fs: &Fs, path: &[u8]| fs.stat(fs.resolve(&root(fs), path).unwrap()).unwrap();
    assert_eq!(
        (stat(&fs, b"etc/text").mtime, stat(&fs, b"etc").mtime.sec),
        (later, 0)
    );
    write(&mut fs, "etc/another", "");
    assert_eq!(stat(&fs, b"etc").mtime, later);
    let id = fs.resolve(&root(&fs), b"etc/text").unwrap();
    fs.set_times(id, None, Some(Timespec { sec: 1, nsec: 0 }))
        .unwrap();
    assert_eq!(stat(&fs, b"etc/text").mtime.sec, 1);
}

#[test]
fn a_bad_initrd_says_what_is_wrong() {
    let fails = |entries: &[Entry<'_>]| {
        Fs::from_initrd(leak(entries), LIMITS)
            .map(drop)
            .unwrap_err()
    };
    let member = |name: &str, errno| BootError::Member {
        name: name.into(),
        errno,
    };
    assert_eq!(
        fails(&[simple(b"../x", 0o100644, b"")]),
        member("../x", Errno::EINVAL)
    );
    assert_eq!(
        fails(&[simple(b"pipe", 0o10644, b"")]),
        member("pipe", Errno::EOPNOTSUPP)
    );
    let under_file = [simple(b"a", 0o100644, b""), simple(b"a/b", 0o100644, b"")];
    assert_eq!(fails(&under_file), member("a/b", Errno::ENOTDIR));
    let broken = Fs::from_initrd(b"070702", LIMITS).map(drop);
    assert_eq!(
        broken,
        Err(BootError::Archive(CpioError {
            at: 0,
            what: Problem::Truncated
        }))
    );
}

#[test]
fn initrd_links_share_bytes_and_later_members_win() {
    let linked = |name, data| Entry {
        links: 2,
        file: (1, 2, 3),
        ..simple(name, 0o100755, data)
    };
    let entries = [
        linked(b"sh", b""),
        linked(b"busybox", b"code"),
        simple(b"dev/null", 0o20600, b""),
        simple(b"twice", 0o100644, b"old"),
        simple(b"twice", 0o100644, b"new"),
    ];
    let mut fs = Fs::from_initrd(leak(&entries), LIMITS).unwrap();
    assert_eq!(text(&mut fs, "sh").unwrap(), "code");
    assert_eq!(
        fs.resolve(&root(&fs), b"sh"),
        fs.resolve(&root(&fs), b"busybox")
    );
    assert_eq!(text(&mut fs, "twice").unwrap(), "new");
    let unknown = open(&mut fs, "dev/null", RDONLY).map(drop);
    assert_eq!(
        unknown,
        Err(Errno::ENXIO),
        "the initrd's node has other numbers"
    );
}

#[derive(Clone, Debug)]
enum Op {
    MakeDir(String),
    Write(String),
    Unlink(String),
    RemoveDir(String),
    Rename(String, String),
    Symlink(String, String),
    Link(String, String),
    Hold(String),
    Release,
}

fn op() -> impl Strategy<Value = Op> {
    let path = || "[ab]((/[ab]){0,2})".prop_map(String::from);
    prop_oneof![
        3 => path().prop_map(Op::MakeDir),
        3 => path().prop_map(Op::Write),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::RemoveDir),
        3 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Symlink(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => path().prop_map(Op::Hold),
        2 => Just(Op::Release),
    ]
}

proptest! {
    /// Whatever happens, the tree is one: every inode is reachable or held, counts are true, parents
    /// are parents, and pages are accounted for.
    #[test]
    fn the_tree_stays_whole(ops in prop::collection::vec(op(), 1..60)) {
        let mut fs = Fs::new(LIMITS);
        let c = root(&fs);
        let mut held = vec![fs.root()];
        for op in ops {
            match op {
                Op::MakeDir(p) => drop(fs.make_dir(&c, p.as_bytes(), 0o755)),
                Op::Write(p) => {
                    if let Ok(mut file) = open(&mut fs, &p, uapi::O_WRONLY | uapi::O_CREAT) {
                        file.write(&mut fs, b"x").unwrap();
                        fs.release(file.id);
                    }
                }
                Op::Unlink(p) => drop(fs.unlink(&c, p.as_bytes())),
                Op::RemoveDir(p) => drop(fs.remove_dir(&c, p.as_bytes())),
                Op::Rename(a, b) => drop(fs.rename((&c, a.as_bytes()), (&c, b.as_bytes()), 0)),
                Op::Symlink(a, b) => drop(fs.make_symlink(&c, a.as_bytes(), b.as_bytes())),
                Op::Link(a, b) => {
                    if let Ok(id) = fs.resolve(&c, a.as_bytes()) {
                        let _ = fs.link(id, &c, b.as_bytes());
                    }
                }
                Op::Hold(p) => {
                    if let Ok(id) = fs.resolve(&c, p.as_bytes()) {
                        fs.hold(id).unwrap();
                        held.push(id);
                    }
                }
                Op::Release => {
                    if held.len() > 1 {
                        fs.release(held.pop().unwrap());
                    }
                }
            }
            check(&fs, &held)?;
        }
    }
}

fn check(fs: &Fs, held: &[InodeId]) -> Result<(), TestCaseError> {
    let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut pages = 0;
    for (id, inode) in &fs.inodes {
        if let Node::File(file) = &inode.node {
            pages += file.pages();
        }
        if let Node::Dir(_) = &inode.node {
            let mut out = Vec::new();
            fs.read_dir(*id, 2, usize::MAX, &mut out).unwrap();
            let mut rest = &out[..];
            while !rest.is_empty() {
                let child = InodeId(u64::from_le_bytes(rest[..8].try_into().unwrap()));
                *names.entry(child).or_default() += 1;
                if let Ok(dir) = fs.dir(child) {
                    prop_assert_eq!(dir.parent, *id);
                    prop_assert!(fs.path_of(child).is_ok() || !fs.is_below(*id, fs.root()));
                    *names.entry(*id).or_default() += 1;
                }
                rest = &rest[usize::from(u16::from_le_bytes([rest[16], rest[17]]))..];
            }
        }
    }
    prop_assert_eq!(fs.pages_left + pages, LIMITS.pages);
    for (id, inode) in &fs.inodes {
        let own = match inode.node {
            Node::Dir(_) if *id == fs.root => 2,
            Node::Dir(_) => 1,
            _ => 0,
        };
        let found = names.get(id).copied().unwrap_or(0);
        prop_assert_eq!(inode.links, own + found, "links of {:?}", id);
        prop_assert_eq!(
            inode.holds as usize,
            held.iter().filter(|h| *h == id).count()
        );
        prop_assert!(found > 0 || inode.holds > 0, "nobody has {:?}", id);
    }
    prop_assert!(names.keys().all(|id| fs.inodes.contains_key(id)));
    Ok(())
}
