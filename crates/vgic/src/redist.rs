//! The redistributors' own registers.
