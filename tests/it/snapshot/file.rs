//! Writing and mapping: round trips, one file for one catalog, and what the description of the format says of its bytes.

use std::path::Path;

use sidereal::catalog::{Catalog, Mask, SectionKind, synthetic};
use sidereal::ids::{Rank, SidIndex, TypeId};

use super::image::Image;
use super::random::{self, Random};

fn reopen(catalog: &Catalog, folder: &Path) -> Catalog {
    let path = folder.join("catalog.sid");
    let mut steps = Vec::new();
    catalog.write(&path, &mut |done, total| steps.push((done, total))).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(steps.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert_eq!(steps.last(), Some(&(bytes, bytes)));
    let verified = Catalog::verify(&path, &mut |_, _| ()).unwrap();
    assert_eq!((verified.snapshot.as_str(), verified.bytes), (catalog.snapshot(), bytes));
    assert_eq!(verified.sections, catalog.sections().len());
    let opened = Catalog::open(&path).unwrap();
    assert_eq!(opened.source_path(), Some(path.as_path()));
    assert_eq!(catalog.source_path(), None);
    opened
}

#[test]
fn files_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, count) in [(1, 0), (2, 1), (3, 64), (4, 65), (5, 3000)] {
        let records = random::records(seed, count);
        let catalog = random::build(&records);
        let opened = reopen(&catalog, folder.path());
        random::check(&opened, &records);
        assert_eq!(opened.snapshot(), catalog.snapshot());
        assert_eq!(opened.layout_hash(), catalog.layout_hash());
        assert_eq!(opened.sections(), catalog.sections());
        assert_eq!(opened.attributes(), catalog.attributes());
        assert_eq!(opened.bytes(), catalog.bytes());
    }
    let tiny = synthetic::tiny();
    let opened = reopen(&tiny, folder.path());
    random::check(&opened, &synthetic::tiny_records());
    // Masks, searches and walks see the same trie.
    for t in (0..3).map(TypeId) {
        let (a, b) = (tiny.index(t), opened.index(t));
        let ranks: Vec<Rank> = (0..a.items() as u32).step_by(3).map(Rank).collect();
        let (one, other) = (Mask::allow(a, &ranks), Mask::allow(b, &ranks));
        for sid in (0..a.sids() as u32).map(SidIndex) {
            assert_eq!(a.codes(sid), b.codes(sid));
            assert_eq!(b.find(&a.codes(sid)), Some(sid));
            assert_eq!(one.first_alive(a, sid), other.first_alive(b, sid));
        }
    }
}

#[test]
fn the_same_items_make_the_same_file() {
    let mut records = random::records(11, 2000);
    let image = Image::of(&random::build(&records));
    let mut random = Random::new(5);
    for threads in [1, 2, 5] {
        (1..records.len()).rev().for_each(|at| records.swap(at, random.below(at + 1)));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| Image::of(&random::build(&records)));
        assert!(image.0 == again.0, "{threads} threads");
    }
    // A file of a mapped catalog is a copy.
    let folder = tempfile::tempdir().unwrap();
    let opened = Catalog::open(image.save(folder.path())).unwrap();
    assert!(Image::of(&opened).0 == image.0);
}

#[test]
fn bytes_are_as_described() {
    let catalog = random::build(&random::records(12, 900));
    let image = Image::of(&catalog);
    let entries = image.entries();
    assert_eq!(&image.0[..12], b"\x89SIDCAT\n\x01\0\0\0");
    let digits: String = image.0[32..48].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, catalog.snapshot());
    let mut mended = image.clone();
    mended.mend();
    assert!(mended.0 == image.0, "checksums and digest by another program");
    let infos = catalog.sections();
    assert_eq!(infos.len(), entries.len());
    let mut at = (64 + 32 * entries.len()).next_multiple_of(64);
    for (entry, info) in entries.iter().zip(&infos) {
        assert_eq!((entry.offset, entry.length), (at as u64, info.bytes as u64), "{info:?}");
        assert_eq!(usize::from(entry.width), info.kind.width());
        assert_eq!(entry.kind, info.kind as u16);
        at = (at + info.bytes).next_multiple_of(64);
    }
    assert_eq!(at, image.0.len());
    let index = [SectionKind::Codes, SectionKind::Starts, SectionKind::Firsts, SectionKind::FirstItems];
    let bytes = infos.iter().filter(|info| index.contains(&info.kind)).map(|info| info.bytes).sum::<usize>();
    assert_eq!(catalog.index_bytes(), bytes);
    // Ids of the first type, as the description finds them.
    let text = |kind| image.entry(image.find(kind, 0, 0xffff));
    let (ids, ends) = (text(7), text(8));
    let end = u32::from_le_bytes(image.0[ends.offset as usize..][..4].try_into().unwrap()) as usize;
    let first = &image.0[ids.offset as usize..][..end];
    assert_eq!(first, catalog.item(TypeId(0), Rank(0)).id().as_bytes());
}

#[test]
fn what_cannot_be_written_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = synthetic::tiny();
    let message = |path: &Path| catalog.write(path, &mut |_, _| ()).unwrap_err().to_string();
    let missing = folder.path().join("no/such/folder/file");
    assert!(message(&missing).starts_with(&format!("{}: cannot be written: ", missing.display())));
    assert!(message(folder.path()).ends_with("the path is a folder"));
    assert!(message(Path::new("/")).contains("cannot be written"));
    let path = folder.path().join("catalog.sid");
    std::fs::write(&path, "what was here").unwrap();
    catalog.write(&path, &mut |_, _| assert_eq!(std::fs::read(&path).unwrap(), b"what was here")).unwrap();
    // A mapped file is replaced under its name; the map stays what it was.
    let opened = Catalog::open(&path).unwrap();
    random::build(&random::records(1, 10)).write(&path, &mut |_, _| ()).unwrap();
    random::check(&opened, &synthetic::tiny_records());
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["catalog.sid"], "no temporary files stay behind");
}

#[test]
fn a_failure_at_the_end_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sid");
    // While the bytes are written, a folder that is not empty takes the name.
    let taken = path.join("file");
    let result = synthetic::tiny().write(&path, &mut |_, _| {
        if !taken.exists() {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(&taken, "kept").unwrap();
        }
    });
    assert!(result.unwrap_err().to_string().contains("catalog.sid: cannot be written: "));
    assert_eq!(std::fs::read(&taken).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "files left behind");
}
