//! What the device tree says about the machine.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use umbra_arm64::Pa;

use super::MAX_CPUS;
use super::args::BootArgs;

/// The parts of the machine that umbra drives.
#[derive(Debug, Default)]
pub(crate) struct Machine<'a> {
    pub(crate) ram: heapless::Vec<(Pa, u64), 16>,
    /// RAM that is somebody else's: what the header reserves, and /reserved-memory.
    pub(crate) reserved: heapless::Vec<(Pa, u64), RESERVED>,
    /// There are more ranges of RAM, or of what is reserved of it, than there is room for.
    pub(crate) too_much: bool,
    pub(crate) initrd: Option<(Pa, u64)>,
    pub(crate) bootargs: BootArgs<'a>,
    /// Random bytes from the loader.
    pub(crate) rng_seed: heapless::Vec<u8, 64>,
    /// PL031: base.
    pub(crate) clock: Option<u64>,
    /// PL011, the one that /chosen names or the first: base and interrupt.
    pub(crate) console: Option<(u64, Option<u32>)>,
    /// GICv3: distributor, redistributors and their bytes.
    pub(crate) gic: Option<(u64, u64, u64)>,
    /// Registers of virtio devices over MMIO that keep caches coherent, and their bytes.
    pub(crate) virtio: heapless::Vec<(u64, u64), 32>,
    /// MPIDR of each CPU, boot CPU included.
    pub(crate) cpus: heapless::Vec<u64, MAX_CPUS>,
    /// CPUs that there was no room for.
    pub(crate) cpus_left: usize,
}

/// Ranges of reserved memory that are kept.
pub(crate) const RESERVED: usize = 64;

fn ranges<'a>(node: FdtNode<'a>) -> impl Iterator<Item = (u64, u64)> + use<'a> {
    node.reg()
        .ok()
        .flatten()
        .into_iter()
        .flatten()
        .filter_map(|reg| Some((reg.address::<u64>().ok()?, reg.size::<u64>().ok()?)))
}

fn is_compatible(node: FdtNode<'_>, with: &str) -> bool {
    node.compatible()
        .is_some_and(|mut names| names.any(|name| name == with))
}

fn cell(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn bytes<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.properties()
        .find(|property| property.name() == name)?
        .value_as::<&'a [u8]>()
        .ok()
}

fn number(node: FdtNode<'_>, name: &str) -> Option<u64> {
    bytes(node, name).and_then(cell)
}

/// Whether a node says that what it describes may be used.
fn is_usable(node: FdtNode<'_>) -> bool {
    matches!(
        bytes(node, "status"),
        None | Some(b"okay\0") | Some(b"ok\0")
    )
}

/// The node that `/chosen/stdout-path` names, by path or alias, options behind a colon left out.
fn stdout<'a>(tree: &Fdt<'a>) -> Option<FdtNode<'a>> {
    let text =
        |node, name| core::str::from_utf8(bytes(node, name)?.split(|b| *b == 0).next()?).ok();
    let named = text(tree.find_node("/chosen")?, "stdout-path")?;
    let named = named.split(':').next()?;
    match tree.find_node(named) {
        None => tree.find_node(text(tree.find_node("/aliases")?, named)?),
        found => found,
    }
}

/// Base and interrupt of a PL011.
fn pl011(node: FdtNode<'_>) -> Option<(u64, Option<u32>)> {
    if !is_compatible(node, "arm,pl011") {
        return None;
    }
    let interrupt = bytes(node, "interrupts").and_then(|cells| {
        // Three cells: 0 for a shared interrupt, its number, its trigger.
        (cells.get(..4)? == [0; 4]).then_some(())?;
        Some(cell(cells.get(4..8)?)? as u32 + 32)
    });
    ranges(node).next().map(|(base, _)| (base, interrupt))
}

impl<'a> Machine<'a> {
    /// Reads the tree. What is missing or malformed stays empty, for the boot flow to name.
    pub(crate) fn read(blob: &'a [u8]) -> Self {
        let mut machine = Self::default();
        let Ok(tree) = Fdt::new(blob) else {
            return machine;
        };
        for reservation in tree.memory_reservations() {
            machine.reserve(reservation.address(), reservation.size());
        }
        machine.console = stdout(&tree).and_then(pl011);
        for node in tree.root().children() {
            machine.look_at(node);
            for child in node.children() {
                machine.look_at(child);
            }
        }
        machine
    }

    fn reserve(&mut self, base: u64, bytes: u64) {
        let pushed = self.reserved.push((Pa::new(base), bytes));
        self.too_much |= pushed.is_err();
    }

    fn look_at(&mut self, node: FdtNode<'a>) {
        if node.name() == "reserved-memory" {
            for (base, bytes) in node.children().flat_map(ranges) {
                self.reserve(base, bytes);
            }
        }
        if !is_usable(node) {
            return;
        }
        match bytes(node, "device_type") {
            Some(b"memory\0") => {
                for (base, bytes) in ranges(node) {
                    let pushed = self.ram.push((Pa::new(base), bytes));
                    self.too_much |= pushed.is_err();
                }
            }
            Some(b"cpu\0") => {
                if let Some(mpidr) = number(node, "reg") {
                    let pushed = self.cpus.push(mpidr);
                    self.cpus_left += usize::from(pushed.is_err());
                }
            }
            _ => {}
        }
        if node.name() == "chosen" {
            self.read_chosen(node);
        } else if self.console.is_none() && is_compatible(node, "arm,pl011") {
            self.console = pl011(node);
        } else if is_compatible(node, "arm,pl031") {
            self.clock = ranges(node).next().map(|(base, _)| base);
        } else if is_compatible(node, "virtio,mmio") {
            // Without the property umbra would have to clean caches; such a device is left alone.
            let registers = ranges(node)
                .next()
                .filter(|_| bytes(node, "dma-coherent").is_some());
            if let Some(registers) = registers {
                let _ = self.virtio.push(registers);
            }
        } else if is_compatible(node, "arm,gic-v3") {
            let mut frames = ranges(node);
            if let (Some((dist, _)), Some((redist, bytes))) = (frames.next(), frames.next()) {
                self.gic = Some((dist, redist, bytes));
            }
        }
    }

    fn read_chosen(&mut self, node: FdtNode<'a>) {
        if let (Some(start), Some(end)) = (
            number(node, "linux,initrd-start"),
            number(node, "linux,initrd-end"),
        ) && end > start
        {
            self.initrd = Some((Pa::new(start), end - start));
        }
        if let Some(seed) = bytes(node, "rng-seed") {
            self.rng_seed = seed.iter().copied().take(64).collect();
        }
        if let Some(text) = bytes(node, "bootargs").and_then(|text| core::str::from_utf8(text).ok())
        {
            self.bootargs = BootArgs(text.trim_end_matches('\0'));
        }
    }
}
