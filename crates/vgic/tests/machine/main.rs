//! The virtual GIC on a modelled machine: the manual's sentences one by one, then random histories against a reference.

mod its;
mod machine;
mod manual;
mod model;
mod random;
mod registers;
