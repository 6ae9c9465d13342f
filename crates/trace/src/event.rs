//! The events. The number of one is never used again for another; fields are added at the end.
//!
//! Where Linux has a tracepoint for the same thing, name and fields are Linux's (`arch/arm64/kvm/trace_arm.h`,
//! `trace_handle_exit.h`, `include/trace/events/`), and what umbra knows besides comes after them. Linux
//! has no tracepoint for what is `umbra:`.

use core::fmt;

use umbra_arm64::{Gva, Ipa, L2Ipa, Pa};

use crate::schema;
use crate::word::{
    Bytes, ExitKind, How, IdleState, Injected, MmioBy, MmioKind, NestedException, Owner,
    Resolution, Rights, SeaPath, Shadowed, UnmapReason, Word,
};

/// An event as the schema tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its number in a record.
    pub number: u16,
    /// `system:name`.
    pub name: &'static str,
    /// Name and format (see `word`) of each field.
    pub fields: &'static [(&'static str, &'static str)],
}

macro_rules! events {
    ($(
        $(#[$doc:meta])*
        $number:literal $name:ident $shown:literal {
            $($(#[$field_doc:meta])* $field:ident $label:literal : $type:ty,)*
        }
    )*) => {
        /// Something that happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $(
                $(#[$doc])*
                $name {
                    $($(#[$field_doc])* $field: $type,)*
                },
            )*
        }

        /// Every event, ascending by number.
        pub const DESCRIPTIONS: &[Description] = &[
            $(Description {
                number: $number,
                name: $shown,
                fields: &[$(($label, <$type as Word>::FORMAT),)*],
            },)*
        ];

        impl Event {
            /// Its number and its fields as words; what it does not use is zero.
            #[inline]
            pub fn encode(&self) -> (u16, [u64; 6]) {
                match *self {
                    $(Event::$name { $($field,)* } => {
                        let fields: &[u64] = &[$(Word::to_word($field),)*];
                        let mut words = [0; 6];
                        for (word, field) in words.iter_mut().zip(fields) {
                            *word = *field;
                        }
                        ($number, words)
                    })*
                }
            }

            /// The event of a record of this version. `None`: no event has this number, or a word
            /// is not a value of its field.
            pub fn decode(kind: u16, words: &[u64; 6]) -> Option<Event> {
                match kind {
                    $($number => {
                        let mut words = words.iter();
                        Some(Event::$name {
                            $($field: Word::from_word(*words.next()?)?,)*
                        })
                    })*
                    _ => None,
                }
            }
        }
    };
}

events! {
    /// A guest is entered.
    1 Entry "kvm:kvm_entry" {
        /// Where it goes on.
        pc "vcpu_pc": u64,
    }
    /// A guest was left.
    2 Exit "kvm:kvm_exit" {
        /// In which way.
        kind "ret": ExitKind,
        /// ESR_EL2.EC.
        ec "esr_ec": u64,
        /// Where it stopped.
        pc "vcpu_pc": u64,
        /// ESR_EL2.
        esr "esr": u64,
    }
    /// A stage-2 fault; `Map`, `Mmio` or `Resolved` follows once it is decided.
    3 GuestFault "kvm:kvm_guest_fault" {
        /// Where the guest was.
        pc "vcpu_pc": u64,
        /// ESR_EL2.
        esr "hsr": u64,
        /// FAR_EL2.
        gva "hxfar": Gva,
        /// The faulting address, in the space of the tables in force: of L2 for a guest's guest.
        ipa "ipa": u64,
    }
    /// A device access.
    4 Mmio "kvm:kvm_mmio" {
        /// Load or store.
        kind "type": MmioKind,
        /// Bytes.
        len "len": u32,
        /// The address in the VM.
        gpa "gpa": Ipa,
        /// What is stored.
        value "val": u64,
        /// Who answers.
        by "by": MmioBy,
    }
    /// KVM_RUN returns to the VMM.
    5 UserspaceExit "kvm:kvm_userspace_exit" {
        /// KVM_EXIT_*.
        reason "reason": u32,
        /// Error number, or 0.
        errno "errno": u32,
        /// The thread that called.
        thread "thread": u64,
    }
    /// WFI or WFE.
    6 Wfx "kvm:kvm_wfx_arm64" {
        /// Where the guest was.
        pc "vcpu_pc": u64,
        /// WFE, not WFI.
        is_wfe "is_wfe": bool,
    }
    /// A hypervisor or firmware call.
    7 Hvc "kvm:kvm_hvc_arm64" {
        /// Where the guest was.
        pc "vcpu_pc": u64,
        /// The function.
        function "r0": u64,
        /// The instruction's immediate.
        immediate "imm": u32,
    }
    /// A trapped system register or system instruction.
    8 SysAccess "kvm:kvm_sys_access" {
        /// Where the guest was.
        pc "vcpu_pc": u64,
        /// A write.
        is_write "is_write": bool,
        /// The register: op0, op1, CRn, CRm, op2 as KVM's register ids have them.
        register "reg": u32,
        /// What is written.
        value "val": u64,
    }
    /// A vCPU that slept goes on.
    9 Wakeup "kvm:kvm_vcpu_wakeup" {
        /// How long it slept, in ticks.
        ticks "ticks": u64,
    }
    /// Virtual EL2 returns to what it runs.
    10 NestedEret "kvm:kvm_nested_eret" {
        /// ELR_EL2.
        elr "elr_el2": u64,
        /// SPSR_EL2.
        spsr "spsr_el2": u64,
        /// HCR_EL2 of the guest hypervisor.
        hcr "hcr_el2": u64,
        /// The shadow table that is used, 0 where the guest hypervisor has no stage 2.
        context "context": u64,
    }
    /// Virtual EL2 takes an exception from what it runs.
    11 NestedException "kvm:kvm_inject_nested_exception" {
        /// ESR_EL2 of the guest hypervisor.
        esr "esr_el2": u64,
        /// Which kind.
        kind "type": NestedException,
        /// Where what it runs was.
        pc "pc": u64,
    }
    /// An exception for a guest that umbra made.
    12 Inject "umbra:inject" {
        /// Which.
        kind "kind": Injected,
        /// The syndrome that the guest sees.
        esr "esr": u64,
        /// The address that the guest sees.
        far "far": u64,
    }
    /// An interrupt line of the virtual GIC.
    13 VgicLine "kvm:vgic_update_irq_pending" {
        /// Whose, for a private interrupt.
        vcpu "vcpu_id": u32,
        /// The interrupt.
        irq "irq": u32,
        /// The line is high.
        level "level": bool,
    }
    /// What became of a stage-2 fault, where no `Map` and no `Mmio` says it.
    19 Resolved "umbra:resolved" {
        /// The address in a guest hypervisor's guest; none for a fault on the VM's own table.
        l2 "l2_ipa": Option<L2Ipa>,
        /// The address in the VM, where it is known.
        ipa "ipa": Option<Ipa>,
        /// What.
        resolution "resolution": Resolution,
    }
    /// A stage-2 entry was made.
    20 Map "umbra:map" {
        /// The address in a guest hypervisor's guest; none in the VM's own table.
        l2 "l2_ipa": Option<L2Ipa>,
        /// The address in the VM.
        ipa "ipa": Ipa,
        /// The address in the machine.
        pa "pa": Pa,
        /// How much: of one entry, or of a run of neighbours.
        bytes "bytes": Bytes,
        /// How it came to be.
        how "how": How,
        /// The shadow table, 0 for the VM's own.
        context "context": u64,
    }
    /// Stage-2 entries went.
    21 Unmap "umbra:unmap" {
        /// The shadow table, 0 for the VM's own.
        context "context": u64,
        /// First address, in the space of the table.
        start "start": u64,
        /// How much.
        bytes "bytes": Bytes,
        /// Why.
        reason "reason": UnmapReason,
    }
    /// A guest hypervisor's stage 2 was walked.
    22 Walk "umbra:walk" {
        /// What for.
        l2 "l2_ipa": L2Ipa,
        /// What it gave; none for a fault.
        output "output": Option<Ipa>,
        /// The level of the last descriptor, as a two's complement word (-1 to 3).
        level "level": u64,
        /// What the leaf maps, contiguous neighbours included.
        bytes "bytes": Bytes,
        /// What it permits.
        rights "rights": Rights,
        /// The fault status code, 0 for success.
        status "status": u64,
    }
    /// A shadow table began or ended.
    23 Shadow "umbra:shadow" {
        /// Which.
        context "context": u64,
        /// What happened.
        what "what": Shadowed,
        /// VTTBR_EL2 of the guest hypervisor.
        vttbr "vttbr_el2": u64,
        /// VTCR_EL2 of the guest hypervisor.
        vtcr "vtcr_el2": u64,
        /// VTTBR_EL2 of the hardware.
        hw_vttbr "hw_vttbr_el2": u64,
    }
    /// A guest hypervisor's TLB maintenance.
    24 Tlbi "umbra:tlbi" {
        /// The instruction, as `SysAccess::register`.
        op "op": u32,
        /// Its operand.
        operand "operand": u64,
        /// The guest hypervisor's VMID.
        vmid "vmid": u32,
    }
    /// A memory error.
    25 Sea "umbra:sea" {
        /// ESR_EL2.
        esr "esr": u64,
        /// FAR_EL2.
        gva "far": Option<Gva>,
        /// The address in the VM, if it is known.
        ipa "ipa": Option<Ipa>,
        /// The address in a guest hypervisor's guest, if that made the access.
        l2 "l2_ipa": Option<L2Ipa>,
        /// Whose memory.
        owner "owner": Owner,
        /// Which way it went.
        path "path": SeaPath,
    }
    /// A system call begins.
    30 SysEnter "raw_syscalls:sys_enter" {
        /// Its number.
        id "id": u32,
        /// x0.
        a0 "arg0": u64,
        /// x1.
        a1 "arg1": u64,
        /// x2.
        a2 "arg2": u64,
        /// The thread.
        thread "thread": u64,
    }
    /// A system call ends.
    31 SysExit "raw_syscalls:sys_exit" {
        /// Its number.
        id "id": u32,
        /// x0.
        ret "ret": u64,
        /// The thread.
        thread "thread": u64,
    }
    /// A process goes on at EL0.
    32 UserEnter "context_tracking:user_enter" {
        /// The thread.
        thread "thread": u64,
        /// Where.
        pc "pc": u64,
    }
    /// A process left EL0.
    33 UserExit "context_tracking:user_exit" {
        /// The thread.
        thread "thread": u64,
        /// ESR_EL2, 0 for an interrupt.
        esr "esr": u64,
    }
    /// A CPU has nothing to do, or again something.
    34 Idle "power:cpu_idle" {
        /// Which of the two.
        state "state": IdleState,
    }
    /// Another thread gets the CPU.
    35 Switch "sched:sched_switch" {
        /// The one that leaves.
        previous "prev_pid": u64,
        /// The one that goes on, 0 for the idle loop.
        next "next_pid": u64,
    }
    /// A physical interrupt.
    36 Interrupt "irq:irq_handler_entry" {
        /// Its INTID.
        irq "irq": u32,
    }
    /// A vCPU's registers were loaded.
    37 Load "umbra:vcpu_load" {
        /// VTTBR_EL2.
        vttbr "vttbr_el2": u64,
    }
    /// A vCPU's registers were put away.
    38 Put "umbra:vcpu_put" {
        /// VTTBR_EL2.
        vttbr "vttbr_el2": u64,
    }
}

impl Event {
    /// What the schema says of it.
    pub fn description(&self) -> &'static Description {
        let (number, _) = self.encode();
        schema::own(number).unwrap_or(&DESCRIPTIONS[0])
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, words) = self.encode();
        schema::show(f, number, &words)
    }
}
