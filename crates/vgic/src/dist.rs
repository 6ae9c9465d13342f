//! The distributor's own registers.
