//! Which firmware calls of a guest the VMM handles or refuses (vm.rst, KVM_ARM_VM_SMCCC_FILTER).
//!
//! What always holds: ranges do not overlap, and none of them touches the architecture's own calls,
//! by which a guest finds out what else there is.

use alloc::vec::Vec;

use crate::device::SmcccFilter as Request;
use crate::errno::Errno;

/// Who handles a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The kernel.
    Kernel,
    /// Nobody: it is unknown to the guest.
    Nobody,
    /// The VMM, by KVM_EXIT_HYPERCALL.
    Vmm,
}

/// The architecture's own calls: owner 0 of fast calls, 32 and 64 bits wide.
const ARCHITECTURE: [(u32, u32); 2] = [(0x8000_0000, 0x8000_ffff), (0xc000_0000, 0xc000_ffff)];

/// The ranges of one VM.
#[derive(Clone, Debug, Default)]
pub struct SmcccFilter {
    /// First and last function, handler.
    ranges: Vec<(u32, u32, Handler)>,
}

impl SmcccFilter {
    /// Whether nothing is filtered.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a range.
    ///
    /// # Errors
    /// EINVAL: no functions, a range that wraps, an unknown action, or padding; EEXIST: it meets
    /// another or the architecture's calls; ENOMEM.
    pub fn add(&mut self, request: &Request) -> Result<(), Errno> {
        let last = request
            .nr_functions
            .checked_sub(1)
            .and_then(|more| request.base.checked_add(more))
            .ok_or(Errno::EINVAL)?;
        let handler = match request.action {
            0 => Handler::Kernel,
            1 => Handler::Nobody,
            2 => Handler::Vmm,
            _ => return Err(Errno::EINVAL),
        };
        if request.pad != [0; 15] {
            return Err(Errno::EINVAL);
        }
        let first = request.base;
        let taken = self.ranges.iter().map(|range| (range.0, range.1));
        if taken
            .chain(ARCHITECTURE)
            .any(|(a, b)| first <= b && a <= last)
        {
            return Err(Errno::EEXIST);
        }
        self.ranges.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.ranges.push((first, last, handler));
        Ok(())
    }

    /// Who handles `function`.
    pub fn handler(&self, function: u32) -> Handler {
        self.ranges
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&function))
            .map_or(Handler::Kernel, |range| range.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u32, nr_functions: u32, action: u8) -> Request {
        Request {
            base,
            nr_functions,
            action,
            pad: [0; 15],
        }
    }

    #[test]
    fn a_range_names_its_functions_and_no_others() {
        let mut filter = SmcccFilter::default();
        filter.add(&range(0xc400_0003, 2, 2)).unwrap();
        filter.add(&range(0x8400_0003, 1, 1)).unwrap();
        for (function, handler) in [
            (0xc400_0002, Handler::Kernel),
            (0xc400_0003, Handler::Vmm),
            (0xc400_0004, Handler::Vmm),
            (0xc400_0005, Handler::Kernel),
            (0x8400_0003, Handler::Nobody),
        ] {
            assert_eq!(filter.handler(function), handler, "{function:#x}");
        }
    }

    #[test]
    fn what_is_refused() {
        let mut filter = SmcccFilter::default();
        filter.add(&range(0x8400_0010, 16, 0)).unwrap();
        for (request, errno) in [
            (range(0x8600_0000, 0, 0), Errno::EINVAL),
            (range(u32::MAX, 2, 0), Errno::EINVAL),
            (range(0x8600_0000, 1, 3), Errno::EINVAL),
            (
                Request {
                    pad: [1; 15],
                    ..range(0x8600_0000, 1, 0)
                },
                Errno::EINVAL,
            ),
            (range(0x8400_001f, 1, 1), Errno::EEXIST),
            (range(0x8400_0000, 17, 1), Errno::EEXIST),
            (range(0x8400_0000, 64, 1), Errno::EEXIST),
            (range(0x8000_0000, 1, 1), Errno::EEXIST),
            (range(0xc000_ffff, 1, 1), Errno::EEXIST),
            (range(0, u32::MAX, 1), Errno::EEXIST),
        ] {
            assert_eq!(filter.add(&request), Err(errno), "{request:?}");
        }
        filter.add(&range(0x8400_0020, 1, 1)).unwrap();
        filter.add(&range(0x8400_000f, 1, 1)).unwrap();
        filter.add(&range(u32::MAX, 1, 1)).unwrap();
    }
}
