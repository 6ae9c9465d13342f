//! The device tree that the guest boots with.
//!
//! It describes exactly what [`crate::layout`] lays out and the machine really has; the Linux
//! bindings under Documentation/devicetree/bindings name every property used.

use vm_fdt::{Error as FdtError, FdtWriter};

use crate::error::{Context, Error, Result};
use crate::layout::{self, Placement};

const GIC_PHANDLE: u32 = 1;

const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Timer PPIs in the binding's order: secure EL1, EL1 physical, EL1 virtual, EL2 physical.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The EL2 virtual timer of FEAT_VHE, fifth in that order.
const TIMER_HYP_VIRT_PPI: u32 = 12;

/// 1.8432 MHz, what a PC's UART has; the guest only computes a divisor from it.
const UART_CLOCK: u32 = 1_843_200;

/// What the tree depends on.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// Number of vCPUs; the MPIDR of vCPU n is n.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Where the boot files are.
    pub placement: Placement,
    /// Whether there is a UART.
    pub serial: bool,
    /// Occupied virtio-mmio slots, counted from slot 0.
    pub virtio: usize,
    /// Whether the guest has EL2.
    pub nested: bool,
    /// Entropy for the guest: KASLR takes the first 8 bytes, the random pool the rest.
    pub seed: [u8; 64],
}

/// Builds the flattened tree, at most [`layout::DTB_MAX`] bytes.
pub fn build(machine: &Machine<'_>) -> Result<Vec<u8>> {
    if machine.cmdline.contains('\0') {
        return Err(Error::Failed("the command line has a NUL byte".into()));
    }
    let blob = write(machine).context("device tree")?;
    if blob.len() as u64 > layout::DTB_MAX {
        return Err(Error::Failed(format!(
            "device tree: {} bytes, more than {}; is the command line that long?",
            blob.len(),
            layout::DTB_MAX
        )));
    }
    Ok(blob)
}

fn write(machine: &Machine<'_>) -> std::result::Result<Vec<u8>, FdtError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "umbra-vmm")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;

    chosen(&mut fdt, machine)?;
    memory(&mut fdt, machine)?;
    cpus(&mut fdt, machine)?;
    psci(&mut fdt, machine)?;
    timer(&mut fdt, machine)?;
    gic(&mut fdt, machine)?;
    if machine.serial {
        serial(&mut fdt)?;
    }
    for slot in 0..machine.virtio {
        virtio(&mut fdt, slot)?;
    }

    fdt.end_node(root)?;
    fdt.finish()
}

type Step = std::result::Result<(), FdtError>;

fn chosen(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline)?;
    if machine.serial {
        fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::SERIAL))?;
    }
    if let Some((base, size)) = machine.placement.initrd {
        fdt.property_u64("linux,initrd-start", base)?;
        fdt.property_u64("linux,initrd-end", base + size)?;
    }
    let (kaslr, pool) = machine.seed.split_at(8);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", pool)?;
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let node = fdt.begin_node(&format!("memory@{:x}", layout::RAM))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM, machine.memory])?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..machine.cpus {
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", u64::from(id))?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn psci(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()],
    )?;
    // A guest with EL2 owns HVC itself, so its firmware answers SMC.
    fdt.property_string("method", if machine.nested { "smc" } else { "hvc" })?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let hyp_virt = machine.nested.then_some(TIMER_HYP_VIRT_PPI);
    let cells: Vec<u32> = TIMER_PPIS
        .into_iter()
        .chain(hyp_virt)
        .flat_map(|ppi| [PPI, ppi, LEVEL_HIGH])
        .collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Step {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::GIC_DIST))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_array_u64(
        "reg",
        &[
            layout::GIC_DIST,
            layout::GIC_DIST_SIZE,
            layout::GIC_REDIST,
            layout::GIC_REDIST_SIZE * u64::from(machine.cpus),
        ],
    )?;
    fdt.property_array_u32(
        "interrupts",
        &[PPI, layout::GIC_MAINTENANCE_PPI, LEVEL_HIGH],
    )?;
    fdt.property_phandle(GIC_PHANDLE)?;
    fdt.end_node(node)
}

fn serial(fdt: &mut FdtWriter) -> Step {
    let node = fdt.begin_node(&format!("serial@{:x}", layout::SERIAL))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[layout::SERIAL, layout::SERIAL_SIZE])?;
    fdt.property_u32("reg-shift", 0)?;
    fdt.property_u32("clock-frequency", UART_CLOCK)?;
    // The UART model pushes a button per event, and an irqfd carries just that: an edge.
    fdt.property_array_u32("interrupts", &[SPI, layout::SERIAL_SPI, EDGE_RISING])?;
    fdt.end_node(node)
}

fn virtio(fdt: &mut FdtWriter, slot: usize) -> Step {
    let base = layout::virtio_base(slot);
    let node = fdt.begin_node(&format!("virtio_mmio@{base:x}"))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[base, layout::VIRTIO_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::virtio_spi(slot), EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    fn machine(cmdline: &str) -> Machine<'_> {
        let mut seed = [0; 64];
        (0..).zip(&mut seed).for_each(|(n, byte)| *byte = n);
        Machine {
            cpus: 2,
            memory: 512 << 20,
            cmdline,
            placement: Placement {
                kernel: layout::RAM,
                initrd: Some((layout::RAM + 0x400_0000, 0x1234)),
                dtb: layout::RAM + 0x1fe0_0000,
            },
            serial: true,
            virtio: 2,
            nested: false,
            seed,
        }
    }

    fn value(blob: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
        let fdt = Fdt::new(blob).unwrap();
        let node = fdt.find_node(path)?;
        Some(node.property(name)?.value().to_vec())
    }

    fn cells(blob: &[u8], path: &str, name: &str) -> Vec<u32> {
        value(blob, path, name)
            .unwrap_or_else(|| panic!("{path} {name}"))
            .chunks_exact(4)
            .map(|c| u32::from_be_bytes(c.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn chosen_names_the_boot_files() {
        let blob = build(&machine("console=ttyS0 quiet")).unwrap();
        let chosen = |name| value(&blob, "/chosen", name).unwrap();
        assert_eq!(chosen("bootargs"), b"console=ttyS0 quiet\0");
        assert_eq!(chosen("stdout-path"), b"/serial@9000000\0");
        assert_eq!(chosen("linux,initrd-start"), 0x8400_0000u64.to_be_bytes());
        assert_eq!(chosen("linux,initrd-end"), 0x8400_1234u64.to_be_bytes());
        assert_eq!(chosen("kaslr-seed"), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chosen("rng-seed").len(), 56, "no byte serves twice");
        assert_eq!(chosen("rng-seed")[0], 8);
    }

    #[test]
    fn gic_window_grows_with_the_cpus() {
        for cpus in [1, 8] {
            let blob = build(&Machine {
                cpus,
                ..machine("")
            })
            .unwrap();
            let reg = cells(&blob, "/interrupt-controller@8000000", "reg");
            assert_eq!(reg[..6], [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000]);
            assert_eq!(reg[6..], [0, 0x2_0000 * cpus]);
            let last = format!("/cpus/cpu@{:x}", cpus - 1);
            assert_eq!(cells(&blob, &last, "reg"), [0, cpus - 1]);
            assert!(value(&blob, &format!("/cpus/cpu@{cpus:x}"), "reg").is_none());
        }
    }

    #[test]
    fn a_guest_with_el2_has_smc_and_its_timer() {
        for (nested, method, ppis) in [
            (false, &b"hvc\0"[..], &[13, 14, 11, 10][..]),
            (true, b"smc\0", &[13, 14, 11, 10, 12]),
        ] {
            let blob = build(&Machine {
                nested,
                ..machine("")
            })
            .unwrap();
            assert_eq!(value(&blob, "/psci", "method").unwrap(), method);
            let timer = cells(&blob, "/timer", "interrupts");
            let seen: Vec<u32> = timer.chunks(3).map(|c| c[1]).collect();
            assert_eq!(seen, ppis);
            assert!(timer.chunks(3).all(|c| c[0] == PPI && c[2] == LEVEL_HIGH));
        }
    }

    #[test]
    fn only_devices_that_exist_are_described() {
        let blob = build(&machine("")).unwrap();
        assert_eq!(
            cells(&blob, "/serial@9000000", "interrupts"),
            [SPI, 1, EDGE_RISING]
        );
        assert_eq!(
            cells(&blob, "/virtio_mmio@a001000", "interrupts"),
            [SPI, 17, EDGE_RISING]
        );
        assert!(value(&blob, "/virtio_mmio@a002000", "reg").is_none());
        let blob = build(&Machine {
            serial: false,
            virtio: 0,
            ..machine("")
        })
        .unwrap();
        assert!(value(&blob, "/serial@9000000", "reg").is_none());
        assert!(value(&blob, "/chosen", "stdout-path").is_none());
        assert!(value(&blob, "/virtio_mmio@a000000", "reg").is_none());
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        assert!(build(&machine("a\0b")).is_err());
        let long = "x".repeat(layout::DTB_MAX as usize);
        assert!(
            build(&machine(&long))
                .unwrap_err()
                .to_string()
                .contains("command line")
        );
    }
}
