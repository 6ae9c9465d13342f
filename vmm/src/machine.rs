//! Virtual machines, from their options to their ends.
//!
//! Everything that can be refused is refused before the VM exists: files are opened, headers
//! read and places found first. Then memory, devices, vCPUs, and the event loop until it stops.
//! Several machines of one process share nothing but its switches; the first has the terminal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, Shared, lock};
use crate::console::{Idle, Input, Output};
use crate::error::{Context, Error, Result};
use crate::event_loop::{self, ConsoleEnd, Ended, Notify, Stdin};
use crate::fdt;
use crate::image::{HEADER_SIZE, Header};
use crate::injection::Injection;
use crate::kvm::{self, Vcpu, Vm};
use crate::layout::{self, Memory, Placement};
use crate::memory_error::Policy;
use crate::options::{self, Console, Options};
use crate::serial::SerialPort;
use crate::settings::Named;
use crate::stats;
use crate::stop::Stop;
use crate::switch::Switch;
use crate::vcpu::{self, StopSwitch};
use crate::virtio::Device;
use crate::virtio::block::Block;
use crate::virtio::console::Console as VirtioConsole;
use crate::virtio::mmio::{NOTIFY, Transport};
use crate::virtio::net::{Net, RECEIVE};
use crate::virtio::rng::Rng;

/// Where the host's random numbers come from.
const RANDOM: &str = "/dev/urandom";

/// A boot file and its size in bytes.
struct BootFile {
    file: File,
    size: u64,
    name: String,
}

impl BootFile {
    fn open(what: &str, path: &Path) -> Result<Self> {
        let name = format!("{what} {}", path.display());
        let file = File::open(path).context(&name)?;
        let metadata = file.metadata().context(&name)?;
        if metadata.is_dir() {
            return Err(Error::Failed(format!("{name}: is a directory")));
        }
        Ok(BootFile {
            file,
            size: metadata.len(),
            name,
        })
    }

    /// Reads the first bytes, as many as there are up to `limit`, and goes back to the start.
    fn peek(&mut self, limit: usize) -> Result<Vec<u8>> {
        use std::io::Seek;
        let mut start = Vec::new();
        let mut head = (&mut self.file).take(limit as u64);
        head.read_to_end(&mut start).context(&self.name)?;
        self.file.rewind().context(&self.name)?;
        Ok(start)
    }

    /// Copies the whole file to guest physical `addr`.
    fn load(&mut self, memory: &Memory, addr: u64) -> Result<()> {
        let size = usize::try_from(self.size).context(&self.name)?;
        memory
            .read_exact_volatile_from(GuestAddress(addr), &mut self.file, size)
            .context(format!("{}: cannot read all of it", self.name))
    }
}

/// Runs machines side by side, each to its own end; answers how each ended, in order.
///
/// Nothing runs before all of them are ready: what can be refused is refused first.
pub fn run_all(machines: &[Named]) -> Result<Vec<Stop>> {
    kvm::catch_bus_errors()?;
    kvm::catch_kicks()?;
    let mut network = Network::default();
    let mut ready = Vec::new();
    for (number, machine) in (0..).zip(machines) {
        let prepared = Machine::prepare(&machine.options, number, &mut network);
        ready.push(prepared.map_err(|e| match machines.len() {
            1 => e,
            _ => Error::Failed(format!("machine {:?}: {e}", machine.name)),
        })?);
    }
    let mut left = ready.into_iter();
    // Where there is but one, this is its event loop's thread.
    let Some(first) = left.next() else {
        return Ok(Vec::new());
    };
    // The terminal can have one reader.
    let others: Vec<_> = left
        .map(|machine| {
            std::thread::Builder::new()
                .name(format!("machine{}", machine.number))
                .spawn(move || machine.run(Stdin::Closed))
                .context("thread")
        })
        .collect();
    let mut ends = vec![first.run(Stdin::Open)];
    ends.extend(others.into_iter().map(|thread| match thread?.join() {
        Ok(end) => end,
        Err(_) => Err(Error::Failed("its thread panicked".into())),
    }));
    Ok(ends
        .into_iter()
        .map(|end| end.unwrap_or_else(|e| Stop::Failed(e.to_string())))
        .collect())
}

/// The switches of this process, by name.
#[derive(Default)]
struct Network(BTreeMap<String, Arc<Switch>>);

impl Network {
    /// A card of machine `number`, at a port of the switch that it names; `slot` makes its address
    /// one of its own.
    fn card(&mut self, net: &options::Net, number: u16, slot: u8, event: Arc<EventFd>) -> Net {
        let switch = self.0.entry(net.switch.clone()).or_default();
        let [high, low] = number.to_be_bytes();
        // Locally administered (IEEE 802), and the same in every run.
        let mac = net.mac.unwrap_or([0x02, b'u', b'm', high, low, slot]);
        Net::new(switch.port(event), mac)
    }
}

/// A machine that only has to be started.
struct Machine {
    number: u16,
    vcpus: Vec<Vcpu>,
    devices: Devices,
    policy: Policy,
    statistics: Option<Statistics>,
    stop_event: Arc<EventFd>,
    /// Held to the end: with it the VM and what its devices are wired to.
    _vm: Vm,
}

impl Machine {
    fn prepare(options: &Options, number: u16, network: &mut Network) -> Result<Self> {
        let mut kernel = BootFile::open("kernel", &options.kernel)?;
        let header = Header::parse(&kernel.peek(HEADER_SIZE)?, kernel.size)
            .map_err(|e| Error::Failed(format!("{}: {e}", options.kernel.display())))?;
        let initrd = options.initrd.as_deref();
        let mut initrd = initrd
            .map(|path| BootFile::open("initrd", path))
            .transpose()?;
        let initrd_size = initrd.as_ref().map(|file| file.size);
        let placement = Placement::new(&header, initrd_size, options.memory)?;

        let disks: Vec<Block> = options
            .disks
            .iter()
            .map(Block::open)
            .collect::<Result<_>>()?;

        let mut seed = [0; 64];
        kvm::random(&mut seed)?;
        let dtb = fdt::build(&fdt::Machine {
            cpus: options.cpus,
            memory: options.memory,
            cmdline: &options.cmdline,
            placement,
            serial: options.console == Console::Serial,
            virtio: disks.len()
                + options.nets.len()
                + usize::from(options.rng)
                + usize::from(options.console == Console::Virtio),
            nested: options.nested,
            seed,
        })?;
        if let Some(path) = &options.dump_dtb {
            std::fs::write(path, &dtb).context(path.display())?;
        }

        let memory = kvm::map_memory(options.memory, options.hugepages)?;
        kernel.load(&memory, placement.kernel)?;
        if let (Some(file), Some((base, _))) = (&mut initrd, placement.initrd) {
            file.load(&memory, base)?;
        }
        memory
            .write_slice(&dtb, GuestAddress(placement.dtb))
            .context("device tree")?;
        log::info!("{placement:x?}, device tree of {} bytes", dtb.len());

        let vm = Vm::new(&memory, options.nested)?;
        if !vm.hear_of_memory_errors()? {
            log::info!("this host does not tell of memory errors (KVM_CAP_ARM_SEA_TO_USER)");
        }
        let policy = Policy {
            action: options.on_memory_error,
            memory: memory.clone(),
        };
        let vcpus = vm.create_vcpus(options.cpus, placement.kernel, placement.dtb)?;
        let devices = Devices::new(options, disks, &vm, &memory, (number, network))?;
        let statistics = options.stats.then(|| Statistics::open(&vm, &vcpus));
        Ok(Machine {
            number,
            vcpus,
            devices,
            policy,
            statistics,
            stop_event: event()?,
            _vm: vm,
        })
    }

    /// Runs the machine to its end.
    fn run(self, stdin: Stdin) -> Result<Stop> {
        let Machine {
            vcpus,
            devices,
            policy,
            statistics,
            stop_event,
            ..
        } = self;
        let switch = StopSwitch::new(stop_event.clone());
        let bus = Arc::new(devices.bus);
        let threads = vcpu::start_all(vcpus, &bus, &switch, &policy)?;
        let console = devices.console.as_ref();
        let ended = event_loop::run(&stop_event, console, stdin, &devices.notifies);
        switch.stop(match &ended {
            Ok(Ended::Left) => Stop::User,
            // Loses against the reason that the vCPU gave when it signalled the event.
            Ok(Ended::Stopped) => Stop::Failed("stopped without a reason".into()),
            Err(e) => Stop::Failed(e.to_string()),
        });
        vcpu::stop_all(threads);
        if let Some(console) = &devices.console {
            lock(&console.input).drain();
        }
        if let Some(statistics) = statistics {
            // That nobody reads stderr is no error.
            let _ = std::io::stderr().write_all(statistics.table().as_bytes());
        }
        Ok(switch.reason().unwrap_or(Stop::PowerOff))
    }
}

/// The host's counters of this machine, opened while its parts are still in one hand.
struct Statistics {
    vm: Option<File>,
    vcpus: Vec<Option<File>>,
}

impl Statistics {
    fn open(vm: &Vm, vcpus: &[Vcpu]) -> Self {
        Statistics {
            vm: vm.stats(),
            vcpus: vcpus.iter().map(Vcpu::stats).collect(),
        }
    }

    /// What they say now, or that the host has none.
    fn table(self) -> String {
        let read = |file: Option<File>| {
            let mut bytes = Vec::new();
            file?.read_to_end(&mut bytes).ok()?;
            stats::parse(&bytes)
        };
        let Some(vm) = read(self.vm) else {
            return "umbra-vmm: this host counts nothing (KVM_GET_STATS_FD)\n".into();
        };
        let vcpus: Vec<_> = self.vcpus.into_iter().filter_map(read).collect();
        stats::table(&vm, &vcpus)
    }
}

/// What the guest and the event loop have to do with each other.
struct Devices {
    bus: Bus,
    console: Option<ConsoleEnd>,
    notifies: Vec<Notify>,
}

impl Devices {
    /// The virtio console, if any, has slot 0; the disks follow in order, then cards, then entropy.
    fn new(
        options: &Options,
        disks: Vec<Block>,
        vm: &Vm,
        memory: &Memory,
        (number, network): (u16, &mut Network),
    ) -> Result<Self> {
        let mut devices = Devices {
            bus: Bus::default(),
            console: None,
            notifies: Vec::new(),
        };
        let mut slots = 0..layout::MAX_VIRTIO;
        let mut slot = || {
            let none = || Error::Failed("too many virtio devices".into());
            slots.next().ok_or_else(none)
        };
        let whole = options.whole_lines;
        match options.console {
            Console::Serial => devices.add_serial(vm, whole)?,
            Console::Virtio => devices.add_virtio_console(vm, memory, slot()?, whole)?,
            Console::Off => {}
        }
        if options.error_injection {
            let device = Arc::new(Mutex::new(Injection::new(memory.clone())));
            devices
                .bus
                .attach(layout::INJECTION, layout::INJECTION_SIZE, device)?;
        }
        for disk in disks {
            devices.add_virtio(vm, memory, slot()?, disk)?;
        }
        for net in &options.nets {
            let (slot, arrived) = (slot()?, event()?);
            let card = network.card(net, number, slot as u8, arrived.clone());
            let device = devices.add_virtio(vm, memory, slot, card)?;
            devices.notifies.push(Notify {
                event: arrived,
                device,
                queue: RECEIVE,
            });
        }
        if options.rng {
            let source = File::open(RANDOM).context(RANDOM)?;
            devices.add_virtio(vm, memory, slot()?, Rng::new(Box::new(source)))?;
        }
        Ok(devices)
    }

    fn add_serial(&mut self, vm: &Vm, whole_lines: bool) -> Result<()> {
        let interrupt = event()?;
        vm.irqfd(&interrupt, layout::SERIAL_SPI)?;
        let (output, end) = console_ends(whole_lines)?;
        let port = SerialPort::new(interrupt, output, end.ready.clone());
        let port = Arc::new(Mutex::new(port));
        self.bus
            .attach(layout::SERIAL, layout::SERIAL_SIZE, port.clone())?;
        self.console = Some(end.with(port));
        Ok(())
    }

    fn add_virtio_console(
        &mut self,
        vm: &Vm,
        memory: &Memory,
        slot: usize,
        whole_lines: bool,
    ) -> Result<()> {
        let (output, end) = console_ends(whole_lines)?;
        let device = VirtioConsole::new(output, end.ready.clone());
        let device = self.add_virtio(vm, memory, slot, device)?;
        self.console = Some(end.with(device));
        Ok(())
    }

    fn add_virtio<D: Device + 'static>(
        &mut self,
        vm: &Vm,
        memory: &Memory,
        slot: usize,
        device: D,
    ) -> Result<Shared<Transport<D>>> {
        let base = layout::virtio_base(slot);
        let interrupt = event()?;
        vm.irqfd(&interrupt, layout::virtio_spi(slot))?;
        let mut kicks = Vec::new();
        for (queue, _) in (0..).zip(device.queue_sizes()) {
            let kick = event()?;
            vm.ioeventfd(&kick, base + NOTIFY, queue)?;
            kicks.push(kick);
        }
        let transport = Transport::new(device, memory.clone(), interrupt, kicks.clone())?;
        let transport = Arc::new(Mutex::new(transport));
        self.bus
            .attach(base, layout::VIRTIO_SIZE, transport.clone())?;
        for (queue, event) in kicks.into_iter().enumerate() {
            self.notifies.push(Notify {
                event,
                device: transport.clone(),
                queue,
            });
        }
        Ok(transport)
    }
}

/// The events of a console whose device is still to be made.
struct ConsoleEvents {
    ready: Arc<EventFd>,
    idle_event: Arc<EventFd>,
    idle: Idle,
}

impl ConsoleEvents {
    fn with(self, input: Shared<dyn Input>) -> ConsoleEnd {
        ConsoleEnd {
            input,
            ready: self.ready,
            idle_event: self.idle_event,
            idle: self.idle,
        }
    }
}

/// Output to stdout and what the event loop needs for it.
fn console_ends(whole_lines: bool) -> Result<(Output, ConsoleEvents)> {
    let (ready, idle_event) = (event()?, event()?);
    let idle = Idle::new(idle_event.clone());
    let output = Output::new(
        Box::new(std::io::stdout()),
        (!whole_lines).then(|| idle.clone()),
    );
    let events = ConsoleEvents {
        ready,
        idle_event,
        idle,
    };
    Ok((output, events))
}

/// An event that nobody blocks on.
fn event() -> Result<Arc<EventFd>> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map(Arc::new)
        .context("eventfd")
}
