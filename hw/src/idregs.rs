//! The identification registers of the machine, by encoding.

use crate::regs::mrs;

/// Reads the ID register with op0=3, op1=0, CRn=0, CRm=`crm`, op2=`op2`. Unallocated ones read 0.
pub fn read(crm: u8, op2: u8) -> u64 {
    macro_rules! table {
        ($($crm:literal $op2:literal $name:literal),* $(,)?) => {
            match (crm, op2) {
                $(($crm, $op2) => mrs!($name),)*
                _ => 0,
            }
        };
    }
    table!(
        0 0 "midr_el1", 0 5 "mpidr_el1", 0 6 "revidr_el1",
        4 0 "s3_0_c0_c4_0", 4 1 "s3_0_c0_c4_1", 4 2 "s3_0_c0_c4_2", 4 3 "s3_0_c0_c4_3",
        4 4 "s3_0_c0_c4_4", 4 5 "s3_0_c0_c4_5", 4 6 "s3_0_c0_c4_6", 4 7 "s3_0_c0_c4_7",
        5 0 "s3_0_c0_c5_0", 5 1 "s3_0_c0_c5_1", 5 2 "s3_0_c0_c5_2", 5 3 "s3_0_c0_c5_3",
        5 4 "s3_0_c0_c5_4", 5 5 "s3_0_c0_c5_5", 5 6 "s3_0_c0_c5_6", 5 7 "s3_0_c0_c5_7",
        6 0 "s3_0_c0_c6_0", 6 1 "s3_0_c0_c6_1", 6 2 "s3_0_c0_c6_2", 6 3 "s3_0_c0_c6_3",
        6 4 "s3_0_c0_c6_4", 6 5 "s3_0_c0_c6_5", 6 6 "s3_0_c0_c6_6", 6 7 "s3_0_c0_c6_7",
        7 0 "s3_0_c0_c7_0", 7 1 "s3_0_c0_c7_1", 7 2 "s3_0_c0_c7_2", 7 3 "s3_0_c0_c7_3",
        7 4 "s3_0_c0_c7_4", 7 5 "s3_0_c0_c7_5", 7 6 "s3_0_c0_c7_6", 7 7 "s3_0_c0_c7_7",
    )
}

/// CTR_EL0.
pub fn ctr() -> u64 {
    mrs!("ctr_el0")
}

/// AIDR_EL1.
pub fn aidr() -> u64 {
    mrs!("s3_1_c0_c0_7")
}

/// CLIDR_EL1.
pub fn clidr() -> u64 {
    mrs!("clidr_el1")
}

/// DCZID_EL0.
pub fn dczid() -> u64 {
    mrs!("dczid_el0")
}
