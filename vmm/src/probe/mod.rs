//! The checks of kvm-probe: one table, small functions, words for what was wrong.
//!
//! What always holds: a check makes its own VMs and leaves nothing behind, so any subset runs in any
//! order. The answers are those of Linux on arm64; where `docs/abi.md` writes down that umbra's
//! differs, the check asks [`Env::umbra`].

pub(crate) mod abi;
pub(crate) mod asm;
mod below;
mod campaign;
mod debug;
mod dirty;
mod el2;
mod events;
mod firmware;
mod follow;
mod ghes;
mod gic;
mod guest;
pub(crate) mod heal;
mod hostile;
mod huge;
mod interface;
mod irq;
mod isolation;
mod its;
pub(crate) mod measure;
mod mmio;
mod noise;
mod oom;
mod pmu;
mod poison;
mod regs;
mod run;
mod scarce;
mod shadows;
mod shapes;
mod slots;
mod storm;
mod sweep;
mod system;
mod time;
mod timers;
mod vcpus;

pub(crate) use storm::storm;

/// What a step of a check comes to; the error is for people.
pub(crate) type Check<T> = Result<T, String>;
/// What a check comes to.
pub(crate) type Outcome = Check<()>;

/// How the checks are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env {
    /// The written differences of umbra are right, not Linux's answers.
    pub(crate) umbra: bool,
    /// Where the noise begins.
    pub(crate) seed: u64,
    /// Rounds of the long checks, in hundredths of their own number.
    pub(crate) effort: u64,
    /// Injections of a campaign.
    pub(crate) count: u64,
    /// Calls of the storm.
    pub(crate) calls: u64,
    /// How long the storm lasts, instead.
    pub(crate) seconds: Option<u64>,
}

impl Env {
    /// `rounds` as long as the caller wants it, at least one.
    pub(crate) fn rounds(&self, rounds: u64) -> u64 {
        (rounds * self.effort / 100).max(1)
    }
}

/// A row of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) check: fn(&Env) -> Outcome,
}

macro_rules! rows {
    ($($module:ident: $($check:ident)+;)*) => {
        /// Every check.
        pub(crate) const ALL: &[Row] = &[
            $($(Row {
                name: concat!(stringify!($module), "/", stringify!($check)),
                check: $module::$check,
            },)+)*
        ];
    };
}

rows! {
    system: api_version extensions run_page_size ipa_sizes unknown_ioctls bad_pointers statistics filtered_calls;
    vcpus: ids before_init bad_init differing_features init_again_resets preferred_target refused_calls;
    slots: alignment overlap beyond_the_vm delete move_slot change delete_under_use read_only
        read_only_walk many most shared_file region2 bad_flags;
    huge: gigabyte below too_many;
    dirty: errors writes_show_once reads_do_not by_hand initially_set walks_show no_write_is_lost;
    mmio: loads stores no_syndrome no_syndrome_exit fetch cache_operation beyond_the_vm
        completion_at_immediate_exit queued_writes;
    run: immediate_exit signal argument system_off system_reset cpu_on cpu_on_shows psci_version mp_state;
    firmware: filtered filter_errors;
    regs: core floating system identity timers id_registers writable_masks unknown sizes list bad_pointer;
    events: external_abort external_abort_of_mmio serror serror_masked before_init bad_values;
    debug: errors single_step of_the_vmm of_the_guest;
    time: offsets stolen clock;
    timers: interrupts chosen_interrupts counters_set offset_set far_alarm;
    pmu: set_up cycles overflow divided;
    gic: none created_once addresses init_order vcpu_after_init closed_vcpu too_few_redistributors registers bad_attributes;
    interface: last_redistributors redistributors_grow early_registers deactivated_elsewhere maintenance of_el2;
    irq: wfi_and_ppi spi lines_by_id line_errors irqfd irqfd_errors irqfd_of_two_vms irqfd_resampled line_status of_the_vmm routing routing_errors ioeventfd ioeventfd_errors;
    its: messages irqfd saved errors;
    follow: remap remap_under_two discard protect_none protect_read huge_remap two_vcpus_fault big_slot rewritten_code
        munmap_faults;
    oom: each_allocation each_ioctl each_call limits;
    isolation: same_address_many_vms fresh_memory created_and_destroyed registers;
    poison: cells not_asked_for instruction_abort injected_later known signal_of_the_vmm unmapped_for_good
        other_vms_live_on bad_requests storm bus_errors;
    below: cells not_routed table shadow_table read_only_slot vncr;
    shadows: writes_show_once by_hand initially_set walks_show flags_show no_write_is_lost slots_change
        delete_under_use tables_go;
    el2: authenticated_returns serrors_of_the_vmm serrors_of_l1 virtual_interrupts walks_beyond_memory big_endian_tables restored_below
        init_again_below;
    ghes: claimed claimed_below about_another_page met_by_the_vmm found_early nothing_to_claim nonsense;
    heal: own_walk root_page nothing_is_leaked process_table process_table_of_a_vm run_page file children;
    campaign: memory_error;
    hostile: hypervisor;
    sweep: pointers files_and_sizes fields orders;
    noise: ioctls vcpu_state instructions everything;
}

/// The name of an error number.
pub(crate) fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::ENOEXEC => "ENOEXEC",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSPC => "ENOSPC",
        libc::ENOSYS => "ENOSYS",
        libc::EHWPOISON => "EHWPOISON",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

/// `what` must have been granted.
pub(crate) fn granted<T>(answer: Result<T, i32>, what: &str) -> Check<T> {
    answer.map_err(|e| format!("{what}: {}", errno_name(e)))
}

/// `what` must have been refused with `errno`.
pub(crate) fn refused<T>(answer: Result<T, i32>, errno: i32, what: &str) -> Outcome {
    let wanted = errno_name(errno);
    match answer {
        Err(seen) if seen == errno => Ok(()),
        Err(seen) => Err(format!("{what}: {}, not {wanted}", errno_name(seen))),
        Ok(_) => Err(format!("{what}: granted, not {wanted}")),
    }
}

/// `seen` must be `wanted`.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(seen: T, wanted: T, what: &str) -> Outcome {
    if seen == wanted {
        return Ok(());
    }
    Err(format!("{what}: {seen:x?}, not {wanted:x?}"))
}

/// A condition with a name.
pub(crate) fn holds(condition: bool, what: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(what()) }
}
