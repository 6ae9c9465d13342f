//! The calls of the storm: what each system call and each ioctl takes, and how to get it a little wrong.
//!
//! A shape is a letter for each argument:
//!
//! ```text
//!  f descriptor   D directory's descriptor   n name   o a name that the noise owns   p scratch memory
//!  s length, below 64 KiB   i small number   a anything   g, l place and length on the playground
//!  v vector of pointer and length   u socket's name   U its family   z zero   O flags of open
//! ```

use umbra_vmm::kvm::{ABOVE_MAPPED, Ground, LOWEST_MAPPED, Region};

use super::noise::Random;
use super::{abi, gic};

/// Room for arguments: what a call writes lies at most 64 KiB behind its address.
pub(super) const SCRATCH: usize = 2 << 20;
/// Where the names lie in it.
const NAMES_AT: usize = 0x10_0000;
/// Bytes for each.
const NAME: usize = 512;
/// Names: the first `OWN_NAMES` may be made, renamed and unlinked.
const NAMES: [&str; 20] = [
    "/n0",
    "/n1",
    "/n2",
    "/n3",
    "/n4",
    "/n5",
    "/nd",
    "/nd/n1",
    "/nd/n2",
    "n3",
    "n4",
    "/nd/nd",
    "",
    ".",
    "/",
    "/dev/kvm",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/proc/meminfo",
];
const OWN_NAMES: u64 = 12;
/// Where the arguments of the next call lie: 16 places of 256 bytes.
const PLACES: u64 = 16;

const IOCTL: u64 = 29;
const MMAP: u64 = 222;

/// A call to make.
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) args: [u64; 6],
}

/// Number and shape of each system call that umbra has, and of some that it has not.
const SHAPES: &[(u64, &str)] = &[
    (17, "ps"),
    (19, "iz"),
    (19, "ii"),
    (20, "z"),
    (21, "fifp"),
    (22, "fpiiz"),
    (23, "f"),
    (24, "ffi"),
    (25, "fia"),
    (32, "fi"),
    (34, "Doi"),
    (35, "Doi"),
    (36, "oDo"),
    (37, "DoDoi"),
    (38, "DoDo"),
    (43, "np"),
    (44, "fp"),
    (45, "os"),
    (46, "fs"),
    (47, "fiss"),
    (48, "Dni"),
    (49, "o"),
    (50, "f"),
    (52, "fi"),
    (53, "Doi"),
    (56, "DnOi"),
    (56, "DnOi"),
    (56, "DnOi"),
    (57, "f"),
    (59, "pz"),
    (59, "pi"),
    (61, "fps"),
    (62, "fai"),
    (63, "fps"),
    (64, "fps"),
    (65, "fvi"),
    (66, "fvi"),
    (67, "fpsa"),
    (68, "fpss"),
    (69, "fvia"),
    (70, "fvis"),
    (71, "ffps"),
    (72, "ipppp"),
    (73, "pipz"),
    (78, "Dnps"),
    (79, "Dnpi"),
    (80, "fp"),
    (82, "f"),
    (85, "zz"),
    (85, "ii"),
    (86, "fipp"),
    (87, "fp"),
    (88, "Dopi"),
    (95, "iipi"),
    (98, "piippi"),
    (101, "pp"),
    (113, "ip"),
    (114, "ip"),
    (115, "iipp"),
    (122, "isp"),
    (123, "isp"),
    (124, ""),
    (132, "pp"),
    (136, "ps"),
    (137, "ppps"),
    (153, "p"),
    (154, "ii"),
    (155, "i"),
    (157, ""),
    (160, "p"),
    (163, "ip"),
    (165, "ip"),
    (166, "i"),
    (167, "iaaaa"),
    (168, "ppp"),
    (169, "pp"),
    (179, "p"),
    (198, "iii"),
    (198, "Uiz"),
    (199, "iiip"),
    (199, "Uizp"),
    (200, "fus"),
    (201, "fi"),
    (202, "fpp"),
    (203, "fus"),
    (204, "fpp"),
    (205, "fpp"),
    (206, "fpsiu"),
    (207, "fpsipp"),
    (208, "fiips"),
    (209, "fiipp"),
    (210, "fi"),
    (211, "fpi"),
    (212, "fpi"),
    (215, "gl"),
    (216, "glli"),
    (222, "glii"),
    (226, "gli"),
    (233, "gli"),
    (242, "fppi"),
    (260, "ipip"),
    (261, "iizp"),
    (276, "DoDoi"),
    (278, "psi"),
    (279, "ni"),
    (291, "Dniip"),
    (439, "Dniii"),
];

/// Calls that wait: each is interrupted after two milliseconds, so they come seldom.
const WAITING: [u64; 14] = [
    22, 32, 63, 65, 72, 73, 98, 101, 115, 137, 202, 207, 212, 260,
];

/// Puts the names into the scratch memory.
pub(super) fn names(scratch: &Region) {
    for (n, name) in NAMES.iter().enumerate() {
        for (at, byte) in name.bytes().chain([0]).enumerate() {
            scratch.set_u8(NAMES_AT + n * NAME + at, byte);
        }
    }
}

/// A descriptor: most lie among the first two dozen.
fn descriptor(random: &mut Random) -> u64 {
    match random.below(32) {
        0 => random.one_of(&[u64::MAX, 0x7fff_ffff, 1023, 1024, 0]),
        1..=2 => random.below(96),
        _ => 3 + random.below(24),
    }
}

fn bad_pointer(random: &mut Random) -> u64 {
    random.one_of(&[
        0,
        8,
        LOWEST_MAPPED - 8,
        ABOVE_MAPPED,
        0xffff_8000_0000_0000,
        u64::MAX,
        u64::MAX - 7,
    ])
}

/// A place for arguments in the scratch memory, filled with noise.
fn place(random: &mut Random, ground: &Ground<'_>) -> u64 {
    let at = (random.below(PLACES) * 0x100) as usize;
    for word in 0..8 {
        let value = random.word(ground.scratch.address(0x8_0000));
        ground.scratch.set_u64(at + 8 * word, value);
    }
    ground.scratch.address(at)
}

fn argument(shape: char, random: &mut Random, ground: &Ground<'_>) -> u64 {
    let page = random.below(64) << 12;
    let pointer = "npouvp".contains(shape) && random.below(16) == 0;
    if pointer {
        return bad_pointer(random) | random.below(8);
    }
    let name = |n: u64| ground.scratch.address(NAMES_AT + n as usize * NAME);
    match shape {
        'f' => descriptor(random),
        'D' if random.below(4) == 0 => descriptor(random),
        'D' => -100i64 as u64,
        'n' => name(random.below(NAMES.len() as u64)),
        'o' => name(random.below(OWN_NAMES)),
        'p' => place(random, ground),
        's' => random.one_of(&[0, 1, 7, 8, 16, 128, 4096, 0xffff]),
        'g' => ground.play + page,
        'l' => random.one_of(&[0, 4096, 4096, 1 << 14, 1 << 18, 2 << 20, 4095]),
        'v' => {
            let at = (random.below(PLACES) * 0x100) as usize;
            for n in 0..8 {
                let base = match random.below(8) {
                    0 => bad_pointer(random),
                    _ => ground.scratch.address(0x4_0000 + 0x1000 * n),
                };
                ground.scratch.set_u64(at + 16 * n, base);
                let bytes = random.one_of(&[0, 1, 100, 4096]);
                ground.scratch.set_u64(at + 16 * n + 8, bytes);
            }
            ground.scratch.address(at)
        }
        'u' => {
            let at = (random.below(PLACES) * 0x100) as usize;
            // AF_UNIX, "/nX".
            let digit = 0x30 + random.below(8);
            let word = 1 | 0x2f << 16 | 0x6e << 24 | digit << 32;
            ground.scratch.set_u64(at, word);
            ground.scratch.address(at)
        }
        'z' => 0,
        'U' => 1,
        'O' => {
            let access = random.below(3);
            let more = [
                0, 0o100, 0o1000, 0o2000, 0o4000, 0o200000, 0o2000000, 0o40100,
            ];
            access | random.one_of(&more) | random.one_of(&more)
        }
        'i' => match random.below(8) {
            0 => 1 << random.below(16),
            1 => u64::MAX,
            2 => random.below(LOWEST_MAPPED),
            _ => random.below(10),
        },
        _ => match random.below(6) {
            0 => place(random, ground),
            1 => bad_pointer(random),
            2 => random.next() | ABOVE_MAPPED,
            _ => random.below(LOWEST_MAPPED),
        },
    }
}

fn system_call(random: &mut Random, ground: &Ground<'_>) -> Call {
    let (mut number, mut shape) = random.one_of(SHAPES);
    if random.below(64) == 0 {
        (number, shape) = (300 + random.below(200), "aaaaaa");
    }
    if WAITING.contains(&number) && random.below(12) != 0 {
        (number, shape) = random.one_of(&[(56, "DnOi"), (19, "ii"), (198, "iii"), (59, "pi")]);
    }
    let mut args = [0; 6];
    for (arg, shape) in args.iter_mut().zip(shape.chars()) {
        *arg = argument(shape, random, ground);
    }
    match number {
        MMAP => {
            let fixed = random.below(4) != 0;
            let fd = random.below(3);
            args[2] = random.below(8);
            args[3] = (random.below(3) + 1) | if fd == 0 { 0 } else { 0x20 };
            args[3] |= if fixed { 0x10 } else { 0 } | if random.below(4) == 0 { 0x4000 } else { 0 };
            args[0] = if fixed { args[0] } else { 0 };
            args[4] = if fd == 0 {
                descriptor(random)
            } else {
                u64::MAX
            };
            args[5] = random.below(4) << 12;
        }
        // mremap: the new place, where it is asked for.
        216 => args[4] = ground.play + (random.below(64) << 12),
        _ => {}
    }
    Call { number, args }
}

fn ioctl(fd: u64, request: u32, argument: u64) -> Call {
    Call {
        number: IOCTL,
        args: [fd, request.into(), argument, 0, 0, 0],
    }
}

/// Puts `words` into a place of the scratch memory, most often as they are.
fn structure(words: &[u64], random: &mut Random, ground: &Ground<'_>) -> u64 {
    let at = (random.below(PLACES) * 0x100) as usize;
    for (n, word) in words.iter().enumerate() {
        ground.scratch.set_u64(at + 8 * n, *word);
    }
    if random.below(6) == 0 {
        let n = random.below(words.len() as u64) as usize;
        let word = random.word(ground.scratch.address(0x8_0000));
        ground.scratch.set_u64(at + 8 * n, word);
    }
    match random.below(24) {
        0 => bad_pointer(random),
        1 => ground.scratch.address(at) + random.below(8),
        _ => ground.scratch.address(at),
    }
}

/// An ioctl of KVM with an argument that could be meant.
fn kvm_call(fd: u64, random: &mut Random, ground: &Ground<'_>) -> Call {
    let small = |random: &mut Random| random.below(4);
    let buffer = ground.scratch.address(0x8_0000);
    let host = ground.play + (random.below(512) << 12);
    let gpa = random.one_of(&[0, 0x4000_0000, 0x4001_0000, 0x8000_0000]) + (random.below(8) << 12);
    let pages = random.one_of(&[0, 1, 2, 16, 512]) << 12;
    let (system, core) = (random.next() & 0xffff, random.below(0x200));
    let register = random.one_of(&[
        abi::x(0),
        abi::PC,
        abi::PSTATE,
        abi::SP_EL1,
        abi::firmware(0),
        abi::firmware(1),
        0x6030_0000_0013_c000 | system,
        0x6030_0000_0010_0000 | core,
    ]);
    // Flags, which must be zero, and the group.
    let group = (random.below(12) / 11) | (random.below(9) << 32);
    let attribute = match random.below(4) {
        0 => random.below(8),
        1 => random.below(0x800) << 2,
        2 => random.below(2) << 32 | random.below(0x100) << 2,
        _ => random.next() & 0xffff,
    };
    let (request, words): (u32, &[u64]) = match random.below(30) {
        0 => (
            abi::SET_USER_MEMORY_REGION,
            &[small(random) | random.below(4) << 32, gpa, pages, host],
        ),
        1 => (
            abi::SET_USER_MEMORY_REGION2,
            &[small(random), gpa, pages, host, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        2 => (
            abi::IRQ_LINE,
            &[abi::spi(32 + random.below(64)) | random.below(2) << 32],
        ),
        3 => (
            abi::IRQ_LINE,
            &[abi::ppi(small(random), random.below(32)) | random.below(2) << 32],
        ),
        4 | 5 => (
            abi::IRQFD,
            &[
                descriptor(random) | random.below(40) << 32,
                random.below(2),
                0,
                0,
            ],
        ),
        6 => (
            abi::IOEVENTFD,
            &[
                random.below(9),
                gpa,
                4 | descriptor(random) << 32,
                random.below(8),
                0,
            ],
        ),
        7 => (abi::GET_MP_STATE, &[0]),
        8 => (abi::SET_MP_STATE, &[random.below(12)]),
        9 => (abi::GET_VCPU_EVENTS, &[0]),
        10 => (
            abi::SET_VCPU_EVENTS,
            &[
                random.next() & 0x1_0101,
                random.below(1 << 25),
                0,
                0,
                0,
                0,
                0,
                0,
            ],
        ),
        11 => (
            abi::ENABLE_CAP,
            &[random.one_of(&[177, 227, 245, 240, 168]), random.below(4)],
        ),
        12 | 13 => (abi::GET_ONE_REG, &[register, buffer]),
        14 | 15 => (abi::SET_ONE_REG, &[register, buffer]),
        16 => (
            abi::VCPU_INIT,
            &[5 | (4 | random.one_of(&[0, 1, 0x60, 0x80])) << 32, 0, 0, 0],
        ),
        17 => (abi::GET_REG_LIST, &[random.one_of(&[0, 10, 4000])]),
        18 => (
            abi::CREATE_DEVICE,
            &[random.one_of(&[5, 7, 8, 8]), random.below(2)],
        ),
        19 | 20 => (abi::SET_DEVICE_ATTR, &[group, attribute, buffer]),
        21 => (abi::GET_DEVICE_ATTR, &[group, attribute, buffer]),
        22 => (abi::HAS_DEVICE_ATTR, &[group, attribute, buffer]),
        23 => (abi::GET_DIRTY_LOG, &[small(random), buffer]),
        24 => (
            abi::CLEAR_DIRTY_LOG,
            &[
                small(random) | random.one_of(&[1, 64, 512]) << 32,
                random.below(2) * 64,
                buffer,
            ],
        ),
        25 => (
            abi::SIGNAL_MSI,
            &[gic::DIST + 0x40, random.below(64), random.below(2), 0],
        ),
        26 => (
            abi::SET_GSI_ROUTING,
            &[
                random.below(3),
                random.below(40) | 1 << 32,
                0,
                random.below(64) << 32,
                0,
                0,
                0,
            ],
        ),
        27 => (abi::GET_REG_WRITABLE_MASKS, &[buffer, 0, 0, 0, 0, 0, 0, 0]),
        28 => return ioctl(fd, abi::GET_STATS_FD, 0),
        _ if random.below(8) == 0 => return ioctl(fd, abi::RUN, 0),
        _ => return ioctl(fd, abi::CREATE_VCPU, small(random)),
    };
    // A copy: the borrow of the literals ends here.
    let words = words.to_vec();
    let argument = structure(&words, random, ground);
    ioctl(fd, request, argument)
}

/// Any number, any argument; not what would block the signal that ends waiting (KVM_SET_SIGNAL_MASK).
fn any_ioctl(fd: u64, random: &mut Random, ground: &Ground<'_>) -> Call {
    let request = match random.below(4) {
        0 => random.next() as u32,
        1 => random.one_of(&[0x5401, 0x5413, 0x541b, 0x5421, 0x5450, 0x5451]),
        _ => 0xae00 | random.next() as u32 & 0xc0ff_00ff,
    };
    let argument = match random.below(3) {
        0 => bad_pointer(random),
        1 if request as u8 != 0x8b => place(random, ground),
        _ => random.below(LOWEST_MAPPED),
    };
    ioctl(fd, request, argument)
}

/// Makes a call and answers what it answered.
type Make<'a> = dyn FnMut(Call) -> Result<u64, i32> + 'a;

/// Puts `words` at a place that nothing else uses, as they are.
fn exactly(words: &[u64], ground: &Ground<'_>) -> u64 {
    const AT: usize = 0x6_0000;
    for (n, word) in words.iter().enumerate() {
        ground.scratch.set_u64(AT + 8 * n, *word);
    }
    ground.scratch.address(AT)
}

/// A VM as a VMM makes it, its GIC and its vCPUs, then noise on them. Other threads close its files meanwhile.
pub(super) fn a_vm(random: &mut Random, ground: &Ground<'_>, make: &mut Make<'_>) -> Option<()> {
    let kvm = NAMES.iter().position(|name| *name == "/dev/kvm")?;
    let path = ground.scratch.address(NAMES_AT + kvm * NAME);
    let kvm = make(Call {
        number: 56,
        args: [-100i64 as u64, path, 2, 0, 0, 0],
    });
    let vm = make(ioctl(kvm.ok()?, abi::CREATE_VM, 0)).ok()?;
    let mut files = vec![vm];
    let memory = [random.below(2) << 32, 0x4000_0000, 64 << 12, ground.play];
    let _ = make(ioctl(
        vm,
        abi::SET_USER_MEMORY_REGION,
        exactly(&memory, ground),
    ));
    for id in 0..2 {
        let Ok(vcpu) = make(ioctl(vm, abi::CREATE_VCPU, id)) else {
            continue;
        };
        files.extend([vcpu, vcpu]);
        let features = 4 | random.one_of(&[0, 0, 0x60, 0x80]);
        let init = [5 | features << 32, 0, 0, 0];
        let _ = make(ioctl(vcpu, abi::VCPU_INIT, exactly(&init, ground)));
    }
    for kind in [7, 8] {
        if random.below(3) == 0 {
            continue;
        }
        let at = exactly(&[kind, 0], ground);
        if make(ioctl(vm, abi::CREATE_DEVICE, at)).is_ok() {
            let device = u64::from(ground.scratch.u32(0x6_0004));
            files.push(device);
            // Distributor or ITS (type 2, 4), redistributors (type 3), then initialise.
            let place = ground.scratch.address(0x6_0100);
            for (group, what, value) in [
                (
                    0,
                    if kind == 7 { 2 } else { 4 },
                    gic::DIST + (kind - 7) * 0x8_0000,
                ),
                (0, 3, gic::REDIST),
                (4, 0, 0),
            ] {
                ground.scratch.set_u64(0x6_0100, value);
                let at = exactly(&[group << 32, what, place], ground);
                let _ = make(ioctl(device, abi::SET_DEVICE_ATTR, at));
            }
        }
    }
    for _ in 0..100 {
        let fd = files[random.below(files.len() as u64) as usize];
        let _ = make(kvm_call(fd, random, ground));
    }
    if random.below(4) != 0 {
        for fd in files {
            let _ = make(Call {
                number: 57,
                args: [fd, 0, 0, 0, 0, 0],
            });
        }
    }
    Some(())
}

/// What comes next.
pub(super) fn next(random: &mut Random, ground: &Ground<'_>) -> Call {
    let fd = descriptor(random);
    match random.below(400) {
        // What no descriptor of these calls reaches is closed; sometimes nearly all.
        0 => Call {
            number: 436,
            args: [random.one_of(&[5, 16, 27, 27, 27, 27]), 0xffff, 0, 0, 0, 0],
        },
        n if n < 120 => kvm_call(fd, random, ground),
        n if n < 140 => any_ioctl(fd, random, ground),
        _ => system_call(random, ground),
    }
}
