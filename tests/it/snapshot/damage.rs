//! Files that are not as they should be: each is an error that names the place, and none a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sidereal::catalog::{Catalog, Mask};
use sidereal::ids::{Rank, SidIndex, TypeId};

use super::image::Image;
use super::random::{self, Random};

const NONE: u16 = 0xffff;

fn image() -> Image {
    Image::of(&random::build(&random::records(21, 1500)))
}

/// The same sections, but short ones.
fn small() -> Image {
    Image::of(&random::build(&random::records(22, 120)))
}

fn open(image: &Image, folder: &Path) -> Result<(), String> {
    let path = image.save(folder);
    let strip = |error: sidereal::Error| {
        let text = error.to_string();
        text.strip_prefix(&format!("{}: ", path.display())).expect("errors begin with the path").to_owned()
    };
    Catalog::open(&path).map(drop).map_err(strip)
}

fn verify(image: &Image, folder: &Path) -> Result<(), String> {
    let path = image.save(folder);
    Catalog::verify(path, &mut |_, _| ()).map(drop).map_err(|error| error.to_string())
}

#[test]
fn cut_files_are_refused_with_both_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let image = image();
    let mut cuts: Vec<usize> = vec![0, 1, 7, 8, 11, 12, 16, 24, 32, 48, 56, 63, 64, 65, 95, 96];
    for entry in image.entries() {
        let (offset, end) = (entry.offset as usize, (entry.offset + entry.length) as usize);
        cuts.extend([offset - 1, offset, offset + 1, end - 1, end, end + 1]);
    }
    let len = image.0.len();
    cuts.extend([len - 64, len - 2, len - 1]);
    for cut in cuts.into_iter().filter(|&cut| cut < len) {
        let message = open(&Image(image.0[..cut].to_vec()), folder.path()).unwrap_err();
        let expected = match cut {
            0 => "no catalog snapshot: is empty".to_owned(),
            1..64 => format!("truncated: {cut} bytes, the header alone has 64"),
            _ => format!("truncated: {cut} bytes, the header says {len}"),
        };
        assert!(message.starts_with(&expected), "cut at {cut}: {message}");
    }
    for more in [1, 64, 4096] {
        let longer = Image([image.0.clone(), vec![0; more]].concat());
        let message = open(&longer, folder.path()).unwrap_err();
        assert_eq!(message, format!("{} bytes, the header says {len}: something was appended", len + more));
    }
}

#[test]
fn foreign_files_and_other_versions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = Image(b"{\"id\": \"a\"}\n".repeat(20));
    let message = open(&text, folder.path()).unwrap_err();
    assert!(
        message
            .starts_with("no catalog snapshot: begins with 7b 22 69 64 22 3a 20 22, a snapshot with 89 53")
    );
    for version in [0u32, 2, u32::MAX] {
        let mut image = image();
        image.0[8..12].copy_from_slice(&version.to_le_bytes());
        let expected = format!("format version {version}, this build reads version 1");
        assert_eq!(open(&image, folder.path()).unwrap_err(), expected);
        image.mend_header();
        assert_eq!(open(&image, folder.path()).unwrap_err(), expected);
    }
    assert!(Catalog::open(folder.path()).unwrap_err().to_string().ends_with("is not a file"));
    assert!(Catalog::open(folder.path().join("none")).unwrap_err().to_string().contains("No such file"));
}

#[test]
fn every_bit_of_header_and_table_counts() {
    let folder = tempfile::tempdir().unwrap();
    let image = image();
    let table = 64..64 + 32 * image.sections();
    for bit in (0..64 * 8).chain((8 * table.start..8 * table.end).step_by(37)) {
        let mut changed = image.clone();
        changed.0[bit / 8] ^= 1 << (bit % 8);
        let message = open(&changed, folder.path()).unwrap_err();
        let expected = match bit / 8 {
            0..8 => "no catalog snapshot: begins with",
            8..12 => "format version",
            12..64 => "altered header: checksum",
            _ => "altered table of sections: checksum",
        };
        assert!(message.starts_with(expected), "bit {bit}: {message}");
    }
    // A header that agrees with itself, but not with the rest.
    for (at, expected) in [
        (12, "altered table of sections"),
        (16, "truncated: "),
        (24, "the contents have layout"),
        (32, "the sections are those of snapshot"),
    ] {
        let mut changed = image.clone();
        changed.0[at] ^= 1;
        let header = xxhash_rust::xxh3::xxh3_64(&changed.0[..56]);
        changed.0[56..64].copy_from_slice(&header.to_le_bytes());
        let message = open(&changed, folder.path()).unwrap_err();
        assert!(
            message.contains(expected) || at == 16 && message.contains("appended"),
            "byte {at}: {message}"
        );
    }
    let mut many = image.clone();
    many.0[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let header = xxhash_rust::xxh3::xxh3_64(&many.0[..56]);
    many.0[56..64].copy_from_slice(&header.to_le_bytes());
    assert!(
        open(&many, folder.path()).unwrap_err().starts_with("4294967295 sections, whose table ends past")
    );
}

#[test]
fn a_flipped_bit_of_any_section_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let image = small();
    for (at, entry) in image.entries().into_iter().enumerate() {
        for byte in [0, entry.length / 2, entry.length.saturating_sub(1)] {
            if entry.length == 0 {
                continue;
            }
            let mut changed = image.clone();
            changed.section_mut(at)[byte as usize] ^= 0x10;
            let message = verify(&changed, folder.path()).unwrap_err();
            let name = format!(": section {at} (");
            assert!(message.contains(&name) && message.contains("checksum"), "section {at}: {message}");
            assert_eq!(
                open(&changed, folder.path()).is_err(),
                at == 0,
                "only the contents are read by opening"
            );
        }
        let end = (entry.offset + entry.length) as usize;
        if !end.is_multiple_of(64) {
            let mut changed = image.clone();
            changed.0[end] = 7;
            let message = verify(&changed, folder.path()).unwrap_err();
            assert!(message.ends_with(&format!("byte {end} between sections is 7, expected 0")), "{message}");
        }
    }
}

#[test]
fn sections_out_of_place_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = small();
    let count = image.sections();
    let entry = |at: usize| 64 + 32 * at..64 + 32 * (at + 1);
    for at in 0..count - 1 {
        // Two entries exchanged, places and all.
        let mut changed = image.clone();
        let (one, other) = (image.0[entry(at)].to_vec(), image.0[entry(at + 1)].to_vec());
        changed.0[entry(at)].copy_from_slice(&other);
        changed.0[entry(at + 1)].copy_from_slice(&one);
        changed.mend();
        let message = open(&changed, folder.path()).unwrap_err();
        assert!(message.starts_with("section "), "{at}: {message}");
        // What they are exchanged, where they lie not.
        let mut changed = image.clone();
        let (from, to) = (entry(at).start, entry(at + 1).start);
        changed.0.copy_within(to..to + 8, from);
        changed.0[to..to + 8].copy_from_slice(&one[..8]);
        changed.mend();
        let message = open(&changed, folder.path()).unwrap_err();
        assert!(message.starts_with(&format!("section {at}: expected ")), "{at}: {message}");
    }
    for at in (0..count).step_by(3) {
        for (field, value) in [
            (8, u64::MAX),
            (8, 0),
            (8, 64),
            (16, u64::MAX),
            (16, u64::MAX - 63),
            (16, 1 << 63),
            (16, image.entry(at).length + 1),
            (16, image.entry(at).length + 64),
            (16, image.entry(at).length.wrapping_sub(1)),
        ] {
            let mut changed = image.clone();
            changed.0[entry(at)][field..field + 8].copy_from_slice(&value.to_le_bytes());
            changed.mend();
            let result = open(&changed, folder.path()).and_then(|()| verify(&changed, folder.path()));
            let message = result.unwrap_err();
            assert!(message.contains("section"), "{field} of section {at} is {value}: {message}");
        }
        for (field, value) in [(0, 0u16), (0, 12), (0, 999), (6, 3), (6, 0)] {
            let mut changed = image.clone();
            changed.0[entry(at)][field..field + 2].copy_from_slice(&value.to_le_bytes());
            changed.mend();
            let message = open(&changed, folder.path()).unwrap_err();
            assert!(message.starts_with(&format!("section {at}: kind ")), "{message}");
        }
    }
}

/// Changes the numbers of a section.
fn change(image: &mut Image, (kind, item_type, part): (u16, u16, u16), change: impl FnOnce(&mut Vec<u64>)) {
    let at = image.find(kind, item_type, part);
    let width = usize::from(image.entry(at).width);
    let bytes = image.section_mut(at);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let mut numbers: Vec<u64> = bytes.chunks_exact(width).map(number).collect();
    change(&mut numbers);
    for (to, number) in bytes.chunks_exact_mut(width).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes()[..width]);
    }
    image.mend();
}

#[test]
fn what_checksums_cannot_see_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let image = image();
    let catalog = random::build(&random::records(21, 1500));
    let column =
        |name: &str| catalog.columns(TypeId(0)).position(|(known, _)| known == name).unwrap() as u16 + 1;
    let on = |name: &str, kind: u16| (kind, 0, column(name));
    type Change<'a> = Box<dyn Fn(&mut Vec<u64>) + 'a>;
    let set = |at: usize, value: u64| -> Change<'_> { Box::new(move |numbers| numbers[at] = value) };
    let table: Vec<((u16, u16, u16), Change<'_>, &str)> = vec![
        ((2, 0, 0), set(0, 8), "(codes of type `book`, level 0): element 0 is 8, the codebook has 8 codes"),
        (
            (2, 0, 0),
            Box::new(|codes| codes.swap(0, 1)),
            "(codes of type `book`, level 0): element 1 is 0, after 1",
        ),
        ((2, 0, 2), Box::new(|codes| codes.reverse()), "(codes of type `book`, level 2): element "),
        ((2, 0, 2), set(1, 0), "(codes of type `book`, level 2): "),
        ((3, 0, 0), set(0, 1), "(starts of type `book`, level 0): element 0 is 1, expected 0"),
        ((3, 0, 0), set(2, 0), "(starts of type `book`, level 0): element 2 is 0, expected above"),
        ((3, 0, 0), set(8, 9999), "(starts of type `book`, level 0): element 8 is Some(9999), expected"),
        ((4, 0, 0), set(1, 2), "(firsts of type `book`, level 0): element 1 is 2, a node that begins at SID"),
        ((5, 0, NONE), set(0, 1), "(first items of type `book`): element 0 is 1, expected 0"),
        ((5, 0, NONE), set(3, u64::from(u32::MAX)), "(first items of type `book`): element 4 is"),
        ((7, 0, NONE), set(0, 0xff), "(id text of type `book`): element 0 is no string: invalid utf-8"),
        ((8, 0, NONE), set(5, 0), "(id ends of type `book`): element 5 is 0, expected"),
        ((8, 0, NONE), set(0, 0), "(id ends of type `book`): the id of rank 0 is empty"),
        ((9, 0, NONE), set(0, 64), "(id bases of type `book`): element 0 is 64, expected 0"),
        ((10, 0, NONE), set(2, f64::NAN.to_bits()), "(popularity of type `book`): element 2 is NaN"),
        ((10, 0, NONE), set(2, (-0.0f64).to_bits()), "(popularity of type `book`): element 2 is -0.0"),
        (
            (10, 0, NONE),
            Box::new(|values| values.iter_mut().enumerate().for_each(|(at, v)| *v = (at as f64).to_bits())),
            "(popularity of type `book`): rank ",
        ),
        ((11, NONE, NONE), Box::new(|slots| slots.sort_unstable()), "(id table): "),
        (
            (11, NONE, NONE),
            Box::new(|slots| slots[..].fill(u64::from(u32::MAX))),
            "(id table): 0 items, expected 1500",
        ),
        (
            (11, NONE, NONE),
            Box::new(|slots| *slots.iter_mut().find(|slot| **slot != u64::from(u32::MAX)).unwrap() |= 2047),
            "(id table): element ",
        ),
        (
            on("adult", 16),
            Box::new(|words| words[0] ^= 1),
            "(present counts of type `book`, attribute `adult`): element",
        ),
        (
            on("adult", 16),
            Box::new(|words| *words.last_mut().unwrap() |= 1 << 63),
            "(present of type `book`, attribute `adult`): element",
        ),
        (
            on("adult", 17),
            set(0, 5),
            "(present counts of type `book`, attribute `adult`): element 0 is 5, expected 0",
        ),
        (
            on("on", 19),
            set(1, 1),
            "(boolean counts of type `book`, attribute `on`): element 1 is 1, expected",
        ),
        (
            on("score", 21),
            set(3, f64::INFINITY.to_bits()),
            "(floats of type `book`, attribute `score`): element 3 is inf",
        ),
        (on("extra", 22), set(0, 0xc0), "(text of type `book`, attribute `extra`): element 0 is no string"),
        (on("extra", 22), set(0, 0x20), "(text of type `book`, attribute `extra`): element 0 is no JSON"),
        (on("extra", 23), set(1, 1 << 31), "(text ends of type `book`, attribute `extra`): element 1 is"),
        (on("creator", 25), set(8, 0x7a), "(name text of type `book`, attribute `creator`): element 1 is"),
        (
            on("creator", 28),
            set(9, 23),
            "(categories of type `book`, attribute `creator`): element 9 is 23, there are 23 names",
        ),
        (
            on("genres", 29),
            set(9, 77),
            "(labels of type `book`, attribute `genres`): element 9 is 77, there are",
        ),
        (on("genres", 30), set(2, 1 << 20), "(list ends of type `book`, attribute `genres`): element 3 is"),
        (
            on("genres", 31),
            set(0, 1),
            "(list bases of type `book`, attribute `genres`): element 0 is 1, expected 0",
        ),
        ((25, 0, 0), set(0, 0xff), "(name text of type `book`, titles): element"),
    ];
    for (key, alter, expected) in table {
        let mut changed = image.clone();
        change(&mut changed, key, alter);
        assert!(open(&changed, folder.path()).is_ok(), "{key:?}: opening does not read sections");
        let message = verify(&changed, folder.path()).expect_err(expected);
        assert!(message.contains(expected), "{key:?}: {message}\nexpected {expected}");
    }
}

/// Looks at everything that a catalog has.
fn walk(catalog: &Catalog) {
    for t in (0..catalog.types().len() as u16).map(TypeId) {
        let index = catalog.index(t);
        let mask = Mask::all(index).excluding(index, &[Rank(0), Rank(5)]);
        for sid in (0..index.sids() as u32).map(SidIndex) {
            index.find(&index.codes(sid));
            mask.first_alive(index, sid);
        }
        for rank in (0..index.items() as u32).map(Rank) {
            let item = catalog.item(t, rank);
            catalog.find(item.id());
            item.title();
            for (_, column) in catalog.columns(t) {
                column.value(rank.index());
            }
        }
    }
}

/// Half of the changes leave checksums that do not fit, which `verify` must see; the other half mend them, so that all checks behind are met.
#[test]
fn changed_files_never_panic_where_they_are_checked() {
    let count =
        std::env::var("SIDEREAL_SNAPSHOT_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(500);
    let folder = tempfile::tempdir().unwrap();
    let image = small();
    let mut random = Random::new(99);
    let (mut refused, mut opened) = (0, 0);
    for round in 0..count {
        let mut changed = image.clone();
        let mended = random.once_in(2);
        for _ in 0..1 + random.below(4) {
            mutate(&mut changed, &mut random);
        }
        if changed.0 == image.0 {
            continue;
        }
        if mended && changed.0.len() >= 64 && 64 + 32 * changed.sections() <= changed.0.len() {
            changed.mend();
        }
        let path = changed.save(folder.path());
        let verified = Catalog::verify(&path, &mut |_, _| ());
        assert!(verified.is_err() || mended, "round {round}: a change was not seen");
        refused += usize::from(verified.is_err());
        if let Ok(catalog) = Catalog::open(&path) {
            opened += 1;
            // Not verified: it may panic, which ends this look at it and nothing else.
            let walked = catch_unwind(AssertUnwindSafe(|| walk(&catalog)));
            assert!(walked.is_ok() || verified.is_err(), "round {round}: a file that was verified");
        }
    }
    println!("{count} files: {refused} refused, {opened} opened");
    assert!(refused * 2 > count && opened > count / 20, "{refused} refused, {opened} opened of {count}");
}

fn mutate(image: &mut Image, random: &mut Random) {
    let len = image.0.len();
    let sections = image.0.len().saturating_sub(64) / 32;
    match random.below(8) {
        0 => image.0.truncate(random.below(len)),
        1 => image.0.extend((0..random.below(200)).map(|at| at as u8)),
        2 => {
            let at = random.below(len.min(64 + 32 * sections.min(80)));
            image.0[at] ^= 1 << random.below(8);
        }
        _ => {
            let (at, value) = (random.below(len), random.next() as u8);
            image.0[at] = [value, 0, 0xff, 1, image.0[at].wrapping_add(1)][random.below(5)];
        }
    }
    if image.0.is_empty() {
        image.0.push(0);
    }
}
