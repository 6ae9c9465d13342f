//! Pages of a process: bringing them in, taking them out, moving them.

use alloc::vec::Vec;

use umbra_abort::Poison;
use umbra_arm64::{Hva, Pa, Rights, Tag};
use umbra_frames::{CHUNK_ORDER, FRAME, Owner};
use umbra_linux::Errno;
use umbra_linux::vma::{BLOCK, Backing, HugeAdvice, Prot, Span, USER_END, Vma};
use umbra_stage2::{Attrs, MapError, Mapped, Tables, User};

use super::space::{Inner, LostPages, MmFault, PageView, invalidate};
use super::{FilePages, Object};
use crate::mem::{self, Provision, TablePages};
use crate::poison;

fn rights(prot: Prot) -> Rights {
    // Linux: any access implies that the page can be read on arm64 (no execute-only without POE).
    Rights {
        read: !prot.is_empty(),
        write: prot.contains(Prot::WRITE),
        exec_el0: prot.contains(Prot::EXEC),
        exec_el1: false,
    }
}

/// Makes the page at `addr` present with the rights of its area.
pub(super) fn bring_in(inner: &mut Inner, addr: Hva, access: Prot) -> Result<PageView, MmFault> {
    let area = inner.areas.fault(addr, access)?.clone();
    let page = addr.align_down(FRAME);
    if let Some(bad) = inner.bad.iter().find(|bad| bad.at == page) {
        return Err(MmFault::Poisoned(bad.frame, poison::consume(bad.frame)));
    }
    if let Some(lost) = inner.lost.iter().find(|lost| lost.span.contains(page))
        && !comes_again(&area, page)
    {
        return Err(MmFault::Poisoned(lost.table, Poison::Known));
    }
    let block = addr.align_down(BLOCK);
    let end = block.checked_add(BLOCK);
    let whole = inner
        .bad
        .iter()
        .all(|bad| bad.at.align_down(BLOCK) != block)
        && inner.lost.iter().all(|lost| {
            lost.span.end() <= block || end.is_some_and(|end| end <= lost.span.start())
        });
    let table = inner.table();
    match table.lookup(addr, &TablePages) {
        Some(leaf) => Ok(PageView {
            start: leaf.addr,
            pa: leaf.pa,
            bytes: leaf.size,
            writable: leaf.attrs.rights.write,
            fresh: false,
        }),
        None => fill(table, &area, addr, whole),
    }
}

/// Whether what the page holds is somewhere else too: in a file that it cannot differ from, or with umbra.
fn comes_again(area: &Vma<Object>, page: Hva) -> bool {
    match area.backing_at(page) {
        Backing::Anon => false,
        Backing::Private { .. } => !area.prot.contains(Prot::WRITE),
        Backing::Shared { .. } => true,
    }
}

/// Cuts unsound pages off the tables of a process: what hung on them is taken from its VMs, and freed. Answers
/// how many there were. `more_lost`: umbra has met some itself.
pub(super) fn heal(inner: &mut Inner, more_lost: bool) -> usize {
    let mut gone = Vec::new();
    let table = inner.table();
    let root = table.root();
    let healed = table.cut_unsound(
        &TablePages,
        &mut mem::is_sound_table,
        &mut |page, at, bytes| {
            if page == root {
                mem::give_up_root(page);
            } else {
                mem::give_up_table(page);
            }
            gone.push((page, at, bytes.min(USER_END.saturating_sub(at))));
        },
    );
    healed.work.finish(&TablePages, invalidate);
    let tag = table.tag();
    if let Some(old) = healed.old_root {
        // No CPU can fill its TLB from it: it maps nothing. One that has it loads another when it faults.
        mem::unlabel(old);
        inner.old_roots.push(old);
    }
    for &(table, at, bytes) in &gone {
        if let Some(span) = Span::new(Hva::new(at), bytes) {
            log::warn!(
                "{} bytes of a process at {} are lost with their table",
                span.bytes(),
                span.start()
            );
            inner.notify(span);
            inner.lost.push(LostPages { span, table });
        }
    }
    if healed.cuts > 0 || more_lost {
        let Inner { table, bad, .. } = inner;
        mem::sweep(tag, |reach| {
            if let Some(table) = table {
                table.visit_tables(&TablePages, &mut |page| reach(page));
                table.visit(Hva::new(0), 1 << 48, &TablePages, |leaf| {
                    // The frames of a block may be several.
                    let end = leaf.pa.raw() + leaf.size;
                    let mut at = leaf.pa;
                    while at.raw() < end {
                        reach(at);
                        let next =
                            mem::block(at).map(|(head, order)| head.raw() + (FRAME << order));
                        at = Pa::new(next.unwrap_or(at.raw() + FRAME));
                    }
                });
            }
            bad.iter().for_each(|page| reach(page.frame));
        });
    }
    healed.cuts
}

/// `whole`: no page of the block round `addr` is bad, or lost.
fn fill(table: &mut User, area: &Vma<Object>, addr: Hva, whole: bool) -> Result<PageView, MmFault> {
    let page = addr.align_down(FRAME);
    match area.backing_at(addr) {
        Backing::Anon => {
            if let Some(block) = block_for(table, area, addr).filter(|_| whole)
                && let Some(pa) = mem::allocate_for(CHUNK_ORDER, table.tag())
            {
                umbra_hw::mem::clear(pa, BLOCK);
                return install(table, block, pa, BLOCK, area.prot);
            }
            let pa = mem::allocate_for(0, table.tag()).ok_or(MmFault::NoMemory)?;
            umbra_hw::mem::clear(pa, FRAME);
            install(table, page, pa, FRAME, area.prot)
        }
        Backing::Private {
            object: Object::File(file),
            offset,
        } => {
            let pa = fill_from_file(&*file, offset, table.tag())?;
            if area.prot.contains(Prot::EXEC) {
                umbra_hw::mem::sync_instructions(pa, FRAME);
            }
            install(table, page, pa, FRAME, area.prot)
        }
        Backing::Shared {
            object: Object::Shared(pages),
            offset,
        }
        | Backing::Private {
            object: Object::Shared(pages),
            offset,
        } => share(table, page, pages.page(offset), area.prot),
        Backing::Shared {
            object: Object::File(file),
            offset,
        } => share(table, page, Some(file.shared_page(offset)?), area.prot),
    }
}

/// Maps a page that others have too. The entry holds it: it lasts until nothing maps it any more,
/// whatever becomes of the object that it is from.
fn share(table: &mut User, at: Hva, pa: Option<Pa>, prot: Prot) -> Result<PageView, MmFault> {
    let pa = pa.ok_or(MmFault::BeyondFile)?;
    if let Some(poison) = poison::state_of(pa) {
        return Err(MmFault::Poisoned(pa, poison));
    }
    let rights = rights(prot);
    mem::hold(pa);
    if map(table, at, pa, FRAME, Attrs::normal(rights), &TablePages).is_err() {
        mem::release(pa);
        return Err(MmFault::NoMemory);
    }
    Ok(PageView {
        start: at,
        pa,
        bytes: FRAME,
        writable: rights.write,
        fresh: false,
    })
}

/// Maps `pa`, `bytes` of cleared memory, at `at` if an anonymous area reaches over all of it and
/// nothing is there yet; otherwise it stays the caller's.
pub(super) fn place(inner: &mut Inner, at: Hva, pa: Pa, bytes: u64) -> bool {
    let Ok(area) = inner.areas.fault(at, Prot::READ) else {
        return false;
    };
    let reaches = at
        .checked_add(bytes)
        .is_some_and(|end| end <= area.span.end());
    let prot = area.prot;
    if !reaches || at < area.span.start() || !matches!(area.backing_at(at), Backing::Anon) {
        return false;
    }
    let table = inner.table();
    let mut empty = true;
    table.visit(at, bytes, &TablePages, |_| empty = false);
    let placed = empty
        && map(
            table,
            at,
            pa,
            bytes,
            Attrs::normal(rights(prot)),
            &TablePages,
        )
        .is_ok();
    if placed {
        mem::give_to(pa, table.tag());
    }
    placed
}

fn fill_from_file(file: &dyn FilePages, offset: u64, tag: Tag) -> Result<Pa, MmFault> {
    let mut bytes = alloc::vec![0u8; FRAME as usize];
    if !file.read_page(offset, &mut bytes) {
        return Err(MmFault::BeyondFile);
    }
    let pa = mem::allocate_for(0, tag).ok_or(MmFault::NoMemory)?;
    umbra_hw::mem::fill(pa, &bytes);
    Ok(pa)
}

/// The 2 MiB block round `addr`, if it lies in the area, may be one, and nothing of it is present.
fn block_for(table: &User, area: &Vma<Object>, addr: Hva) -> Option<Hva> {
    let block = addr.align_down(BLOCK);
    let fits = block >= area.span.start() && block.checked_add(BLOCK)? <= area.span.end();
    if !fits || area.traits.huge == HugeAdvice::Never || area.traits.grows_down {
        return None;
    }
    let mut empty = true;
    table.visit(block, BLOCK, &TablePages, |_| empty = false);
    empty.then_some(block)
}

fn install(table: &mut User, at: Hva, pa: Pa, bytes: u64, prot: Prot) -> Result<PageView, MmFault> {
    let rights = rights(prot);
    if map(table, at, pa, bytes, Attrs::normal(rights), &TablePages).is_err() {
        mem::release(pa);
        return Err(MmFault::NoMemory);
    }
    Ok(PageView {
        start: at,
        pa,
        bytes,
        writable: rights.write,
        fresh: true,
    })
}

/// Maps where nothing was before. A block may find an empty table in its place: that is broken
/// first, which is no loss.
fn map(
    table: &mut User,
    at: Hva,
    pa: Pa,
    bytes: u64,
    attrs: Attrs,
    tables: &impl Tables,
) -> Result<(), MapError> {
    match table.map(at, pa, bytes, attrs, tables)? {
        Mapped::Fresh | Mapped::Unchanged => {}
        Mapped::Rights(work) => work.finish(&TablePages, invalidate),
        Mapped::Broken(broken) => {
            broken.finish(table, &TablePages, invalidate);
        }
    }
    Ok(())
}

/// How many pieces are looked at together: their list is small beside the kernel's heap, whatever a
/// process maps.
const PORTION: u64 = 1024;

/// How many [`pieces`] a span has.
fn count_pieces(table: &User, span: Span) -> u64 {
    let mut count = 0;
    table.visit(span.start(), span.bytes(), &TablePages, |leaf| {
        let from = leaf.addr.raw().max(span.start().raw());
        let to = (leaf.addr.raw() + leaf.size).min(span.end().raw());
        count += if to.saturating_sub(from) == leaf.size {
            1
        } else {
            to.saturating_sub(from) / FRAME
        };
    });
    count
}

/// Calls `f` for parts of a span, from the lowest on, that have no more than [`PORTION`] pieces each.
fn in_portions(table: &mut User, span: Span, f: &mut impl FnMut(&mut User, Span)) {
    if span.bytes() <= FRAME || count_pieces(table, span) <= PORTION {
        return f(table, span);
    }
    // Cut where no block is cut, as far as that can be.
    let half = span.start().raw() + span.bytes() / 2;
    let cut = [1 << 30, BLOCK, FRAME]
        .map(|size| Hva::new(half).align_down(size))
        .into_iter()
        .find(|&cut| cut > span.start());
    let parts = cut.and_then(|cut| {
        let low = Span::new(span.start(), cut.offset_from(span.start())?)?;
        Some((low, Span::new(cut, span.end().offset_from(cut)?)?))
    });
    match parts {
        Some((low, high)) => {
            in_portions(table, low, f);
            in_portions(table, high, f);
        }
        None => f(table, span),
    }
}

/// The pages of a span as (address, frame, bytes), blocks that reach beyond it cut into pages.
fn pieces(table: &User, span: Span) -> Vec<(Hva, Pa, u64)> {
    let mut pieces = Vec::new();
    table.visit(span.start(), span.bytes(), &TablePages, |leaf| {
        let end = leaf.addr.raw() + leaf.size;
        if leaf.addr >= span.start() && end <= span.end().raw() {
            pieces.push((leaf.addr, leaf.pa, leaf.size));
            return;
        }
        split(leaf.pa);
        let mut at = leaf.addr.raw().max(span.start().raw());
        while at < end.min(span.end().raw()) {
            let pa = Pa::new(leaf.pa.raw() + (at - leaf.addr.raw()));
            pieces.push((Hva::new(at), pa, FRAME));
            at += FRAME;
        }
    });
    pieces
}

/// Makes the frames of the block round `pa` frames of their own.
fn split(pa: Pa) {
    if let Some((head, 1..)) = mem::block(pa) {
        mem::split(head);
    }
}

/// Unmaps the one page of a span, whose frame is bad, and keeps the frame. False where its block could
/// not be cut for lack of memory.
pub(super) fn take(table: &mut User, span: Span, frame: Pa) -> bool {
    split(frame);
    unmap(table, span)
}

/// Maps `to`, which is no memory, where a page was.
pub(super) fn misdirect(table: &mut User, page: Span, to: Pa) -> Result<(), MapError> {
    remove(table, page);
    map(
        table,
        page.start(),
        to,
        FRAME,
        Attrs::normal(rights(Prot::RW)),
        &TablePages,
    )
}

/// Cuts the block that reaches across `at`, which is a page's address, if one does. `ENOMEM`: it is whole still.
pub(super) fn cut(table: &mut User, at: Hva) -> Result<(), Errno> {
    while let Some(leaf) = table.lookup(at, &TablePages)
        && leaf.addr < at
    {
        match table.split(at, &TablePages) {
            Ok(Some(broken)) => {
                broken.finish(table, &TablePages, invalidate);
            }
            Ok(None) => break,
            Err(_) => return Err(Errno::ENOMEM),
        }
    }
    Ok(())
}

/// Unmaps a span and gives its frames back.
pub(super) fn remove(table: &mut User, span: Span) {
    in_portions(table, span, &mut |table, span| {
        let pieces = pieces(table, span);
        if unmap(table, span) {
            for (_, pa, bytes) in pieces {
                release(pa, bytes);
            }
        }
    });
}

/// Returns false where a block could not be split for lack of memory: the mapping stays, unreachable
/// by any new area until the process ends.
fn unmap(table: &mut User, span: Span) -> bool {
    match table.unmap(span.start(), span.bytes(), &TablePages) {
        Ok(change) => {
            change.finish(table, &TablePages, invalidate);
            true
        }
        Err(error) => {
            log::error!("unmapping {span:?}: {error:?}");
            false
        }
    }
}

/// Gives a leaf's frames back, or what it holds of those that others have too.
pub(super) fn release(pa: Pa, bytes: u64) {
    if !matches!(mem::owner(pa), Some(Owner::Anonymous | Owner::Shared)) {
        return;
    }
    match mem::block(pa) {
        Some((head, order)) if head == pa && FRAME << order == bytes => {
            mem::release(pa);
        }
        // Pieces of a block that the table has in pieces (mprotect of a part), or that an earlier
        // unmapping of a part split.
        Some(_) => {
            split(pa);
            for page in 0..bytes / FRAME {
                mem::release(Pa::new(pa.raw() + page * FRAME));
            }
        }
        None => {}
    }
}

/// Changes rights of what is present in a span.
pub(super) fn protect(table: &mut User, span: Span, prot: Prot) {
    if prot.contains(Prot::EXEC) {
        table.visit(span.start(), span.bytes(), &TablePages, |leaf| {
            if mem::owner(leaf.pa) == Some(Owner::Anonymous) {
                umbra_hw::mem::sync_instructions(leaf.pa, leaf.size);
            }
        });
    }
    match table.protect(span.start(), span.bytes(), rights(prot), &TablePages) {
        Ok(change) => change.finish(table, &TablePages, invalidate),
        Err(error) => {
            // No memory to split a block: what is present goes, so that no right outlives the call.
            // Its content is lost, which Linux would answer with the out-of-memory killer.
            log::error!("protecting {span:?}: {error:?}");
            table
                .evict(span.start(), span.bytes(), &TablePages)
                .finish(&TablePages, invalidate);
        }
    }
}

/// Pages for the tables that what is present in a span may need elsewhere. `ENOMEM`.
pub(super) fn provision(table: &User, from: Span) -> Result<Provision, Errno> {
    // Regions with a table of their own, at each level; each may reach into two at another place.
    let (mut regions, mut last) = (0, [u64::MAX; 3]);
    table.visit(from.start(), from.bytes(), &TablePages, |leaf| {
        for (shift, last) in [21, 30, 39].into_iter().zip(&mut last) {
            let ends = [leaf.addr.raw(), leaf.addr.raw() + leaf.size - 1];
            let [first, end] = ends.map(|addr| addr >> shift);
            regions += end + 1 - if *last == first { first + 1 } else { first };
            *last = end;
        }
    });
    Provision::take(2 * regions as usize)
}

/// Moves what is present in a span to `to`, with the rights it has, and with tables of what was provided.
pub(super) fn relocate(table: &mut User, from: Span, target: Hva, provision: &Provision) {
    in_portions(table, from, &mut |table, part| {
        let to = part.start().offset_from(from.start());
        if let Some(to) = to.and_then(|offset| target.checked_add(offset)) {
            relocate_portion(table, part, to, provision);
        }
    });
}

fn relocate_portion(table: &mut User, from: Span, to: Hva, provision: &Provision) {
    let pieces: Vec<_> = pieces(table, from)
        .into_iter()
        .map(|(at, pa, bytes)| {
            (
                at,
                pa,
                bytes,
                table.lookup(at, &TablePages).map(|leaf| leaf.attrs),
            )
        })
        .collect();
    if !unmap(table, from) {
        return;
    }
    for (at, pa, bytes, attrs) in pieces {
        let (Some(offset), Some(attrs)) = (at.offset_from(from.start()), attrs) else {
            continue;
        };
        let Some(target) = to.checked_add(offset) else {
            continue;
        };
        let whole = bytes == FRAME || target.is_aligned(bytes);
        if !whole {
            split(pa);
        }
        let step = if whole { bytes } else { FRAME };
        for part in 0..bytes / step {
            let (Some(at), pa) = (
                target.checked_add(part * step),
                Pa::new(pa.raw() + part * step),
            ) else {
                continue;
            };
            if map(table, at, pa, step, attrs, provision).is_err() {
                release(pa, step);
            }
        }
    }
}

/// Takes a whole table down.
pub(super) fn destroy(mut table: User) {
    if let Some(everything) = Span::new(Hva::new(0), 1 << 48) {
        remove(&mut table, everything);
    }
    table.destroy(&TablePages).finish(&TablePages, invalidate);
}
