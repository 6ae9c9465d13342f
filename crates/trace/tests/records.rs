//! Records and files survive the way out and back; what another version wrote is never misread.

use proptest::prelude::*;
use umbra_trace::block::{self, Block, Blocks, Error, Header};
use umbra_trace::schema::{self, Entry};
use umbra_trace::{DESCRIPTIONS, Event, Head, How, RECORD_BYTES, Record, Resolution};

/// A word that most formats have a value for.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..8, 0u64..1 << 32, any::<u64>()]
}

fn record() -> impl Strategy<Value = Record> {
    let head = (0u16..40, any::<u8>(), any::<u16>(), any::<u16>());
    (any::<u64>(), head, prop::array::uniform6(word())).prop_map(|(time, head, words)| {
        let (kind, storey, vcpu, vm) = head;
        Record {
            time,
            head: Head {
                kind,
                storey,
                vcpu,
                vm,
            },
            words,
        }
    })
}

fn bytes_of(record: &Record) -> Vec<u8> {
    record
        .to_words()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn ring(records: &[Record], capacity: u64, written: u64) -> Vec<u8> {
    let content: Vec<u8> = records.iter().flat_map(bytes_of).collect();
    let header = Header {
        kind: block::KIND_RING,
        bytes: content.len() as u64,
        cpu: 3,
        frequency: 1_000_000_000,
        capacity,
        written,
    };
    [header.to_bytes().to_vec(), content].concat()
}

fn schema_text() -> String {
    let mut text = String::new();
    schema::write(&mut text).unwrap();
    text
}

proptest! {
    #[test]
    fn a_record_comes_back(record in record()) {
        let bytes = bytes_of(&record);
        prop_assert_eq!(bytes.len(), RECORD_BYTES);
        prop_assert_eq!(Record::from_bytes(bytes.as_slice().try_into().unwrap()), record);
    }

    #[test]
    fn what_decodes_encodes_to_the_same_words(record in record()) {
        if let Some(event) = Event::decode(record.head.kind, &record.words) {
            let (kind, words) = event.encode();
            prop_assert_eq!(kind, record.head.kind);
            let fields = event.description().fields.len();
            prop_assert_eq!(&words[..fields], &record.words[..fields]);
            prop_assert!(words[fields..].iter().all(|&word| word == 0));
            prop_assert_eq!(Event::decode(kind, &words), Some(event));
        }
    }

    #[test]
    fn a_full_ring_gives_the_newest_in_order(capacity in 1u64..40, written in 0u64..200) {
        let record = |n: u64| Record {
            time: n,
            head: Head { kind: 34, storey: 0, vcpu: 0, vm: 0 },
            words: [0; 6],
        };
        let mut slots: Vec<Record> = Vec::new();
        for n in 0..written {
            let at = (n % capacity) as usize;
            if at < slots.len() { slots[at] = record(n) } else { slots.push(record(n)) }
        }
        let file = ring(&slots, capacity, written);
        let block = Blocks::of(&file).next().unwrap().unwrap();
        let times: Vec<u64> = block.records().map(|r| r.time).collect();
        let expected: Vec<u64> = (written.saturating_sub(capacity)..written).collect();
        prop_assert_eq!(times, expected);
        prop_assert_eq!(block.dropped(), written.saturating_sub(capacity));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), honest in any::<bool>()) {
        let mut file = bytes;
        if honest {
            file.splice(0..0, ring(&[], 4, 9));
            // A length that the file does not have.
            file[16] = 0xf8;
        }
        for block in Blocks::of(&file).flatten() {
            let _ = block.records().filter_map(|r| Event::decode(r.head.kind, &r.words)).count();
        }
    }
}

#[test]
fn the_table_ascends_fits_and_is_named_once() {
    for pair in DESCRIPTIONS.windows(2) {
        assert!(pair[0].number < pair[1].number, "{}", pair[1].name);
    }
    for own in DESCRIPTIONS {
        assert!(own.number != 0 && own.fields.len() <= 6, "{}", own.name);
        assert!(own.name.split_once(':').is_some(), "{}", own.name);
        let same = DESCRIPTIONS.iter().filter(|other| other.name == own.name);
        assert_eq!(same.count(), 1, "{}", own.name);
        assert_eq!(schema::own(own.number), Some(own));
        for (field, format) in own.fields {
            let plain = !field.contains([' ', '=']) && !format.contains([' ', '=']);
            assert!(plain, "{} {field}", own.name);
        }
    }
    assert_eq!(schema::own(0), None);
}

#[test]
fn the_schema_describes_this_version() {
    let text = schema_text();
    let entries: Vec<Entry<'_>> = text.lines().filter_map(Entry::parse).collect();
    assert_eq!(entries.len(), DESCRIPTIONS.len());
    assert!(entries.iter().all(Entry::is_own));
    assert!(entries.iter().any(|e| e.name == "kvm:kvm_exit"));
}

#[test]
fn another_version_s_event_is_not_ours() {
    let own = "6 kvm:kvm_wfx_arm64 vcpu_pc=x is_wfe=e:|no|yes";
    assert!(Entry::parse(own).unwrap().is_own());
    for newer in [
        "6 kvm:kvm_wfx_arm64 vcpu_pc=x is_wfe=e:|no|yes timeout=x",
        "6 kvm:kvm_wfx_arm64 vcpu_pc=x is_wfe=e:|no|yes|maybe",
    ] {
        assert!(Entry::parse(newer).unwrap().is_own(), "{newer}");
    }
    for other in [
        "6 kvm:kvm_wfx_arm64 vcpu_pc=x",
        "6 kvm:kvm_wfx_arm64 is_wfe=e:|no|yes vcpu_pc=x",
        "6 kvm:kvm_wfx_arm64 vcpu_pc=x is_wfe=e:|yes|no",
        "6 kvm:kvm_wfx_arm64 vcpu_pc=d is_wfe=e:|no|yes",
        "6 kvm:kvm_halt vcpu_pc=x is_wfe=e:|no|yes",
        "7 kvm:kvm_wfx_arm64 vcpu_pc=x is_wfe=e:|no|yes",
        "999 umbra:new thing=x",
    ] {
        assert!(!Entry::parse(other).unwrap().is_own(), "{other}");
    }
    for none in ["", "6", "kvm:kvm_exit 2", "65536 a:b"] {
        assert_eq!(Entry::parse(none), None, "{none}");
    }
}

#[test]
fn words_are_shown_as_their_format_says() {
    for (format, word, shown) in [
        ("x", 255, "0xff"),
        ("d", 255, "255"),
        ("b", 4096, "4096"),
        ("a", u64::MAX, "-"),
        ("a", 0, "0x0"),
        ("e:|no|yes", 1, "yes"),
        ("e:|no|yes", 2, "2?"),
        ("f:|r|w|x0|x1", 0b1011, "r,w,x1"),
        ("f:|r|w", 0, "-"),
        ("f:|r|w", 0b101, "r,0x4?"),
        ("f:|r|w", 0b100, "0x4?"),
        ("from the future", 16, "0x10"),
    ] {
        let mut text = String::new();
        schema::show_word(&mut text, format, word).unwrap();
        assert_eq!(text, shown, "{format} {word}");
    }
}

#[test]
fn an_event_shows_itself() {
    let fault = Event::GuestFault {
        pc: 0x4000,
        esr: 0x9200_0046,
        gva: umbra_arm64::Gva::new(0xffff_8000_0000_1234),
        ipa: 0x8000_1000,
    };
    assert_eq!(
        fault.to_string(),
        "kvm_guest_fault vcpu_pc=0x4000 hsr=0x92000046 hxfar=0xffff800000001234 \
         ipa=0x80001000"
    );
    let resolved = Event::Resolved {
        l2: None,
        ipa: Some(umbra_arm64::Ipa::new(0x4000)),
        resolution: Resolution::Reflected,
    };
    assert_eq!(
        resolved.to_string(),
        "resolved l2_ipa=- ipa=0x4000 resolution=reflected"
    );
    assert_eq!(How::ALL.len(), 6);
}

#[test]
fn a_word_that_no_field_has_is_no_event() {
    // An interrupt number beyond 32 bits, a resolution that does not exist, no such event.
    assert_eq!(Event::decode(36, &[1 << 32, 0, 0, 0, 0, 0]), None);
    assert_eq!(Event::decode(19, &[0, 0, 99, 0, 0, 0]), None);
    assert_eq!(Event::decode(0, &[0; 6]), None);
    assert_eq!(Event::decode(999, &[0; 6]), None);
}

#[test]
fn a_file_is_read_as_far_as_it_can_be() {
    let record = Record {
        time: 7,
        head: Head {
            kind: 34,
            storey: 0,
            vcpu: 1,
            vm: 2,
        },
        words: [1, 0, 0, 0, 0, 0],
    };
    let file = [ring(&[record; 3], 8, 3), ring(&[record; 2], 8, 2)].concat();
    let blocks = |file: &[u8]| -> Vec<Result<(usize, bool), Error>> {
        let seen = |block: Block<'_>| (block.records().count(), block.is_cut());
        Blocks::of(file).map(|block| block.map(seen)).collect()
    };
    assert_eq!(blocks(&file), [Ok((3, false)), Ok((2, false))]);
    // Cut within a record, within a header, to nothing.
    assert_eq!(
        blocks(&file[..file.len() - 1]),
        [Ok((3, false)), Ok((1, true))]
    );
    assert_eq!(blocks(&file[..64 + 3 * 64 + 10]), [Ok((3, false))]);
    assert_eq!(blocks(&[]), []);
    assert_eq!(blocks(&file[..10]), [Err(Error::NotATrace { at: 0 })]);
    // What is no trace, and what is one of another format.
    assert_eq!(blocks(&[b'#'; 100]), [Err(Error::NotATrace { at: 0 })]);
    let mut other = file.clone();
    other[12] = 2;
    assert_eq!(blocks(&other), [Err(Error::Version(2))]);
    // A kind that nobody knows is a block like any other.
    let mut unknown = file;
    unknown[8] = 77;
    let first = Blocks::of(&unknown).next().unwrap().unwrap();
    assert_eq!(first.header.kind, 77);
    assert_eq!(blocks(&unknown).len(), 2);
}
