//! Files that are no sources.

use sidereal::catalog::source::{CodesFile, Mapping, OnError, Sources};

use super::{Dice, Folder, KINDS, csv, items, jsonl, mapping, read, types};

#[test]
fn malformed_files_are_refused_with_the_place() {
    let folder = Folder::new();
    let wide = (0..5000).map(|at| format!("c{at}")).collect::<Vec<_>>().join(",");
    let long = format!("id,type,sid\na,book,\"{}", "x,\n".repeat(1 << 20));
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a.csv", vec![], "empty, expected a line that names the columns"),
        ("a.csv", b"\xef\xbb\xbf\n\r\n".to_vec(), "empty, expected a line that names the columns"),
        ("a.csv", b"id,type,sid,x,x\n".to_vec(), "line 1: columns 4 and 5 are both named `x`"),
        ("a.csv", b"id,type,,sid\n".to_vec(), "line 1: column 3 has no name"),
        ("a.csv", b"id,type,\xff,sid\n".to_vec(), "line 1: the name of column 3 is not UTF-8"),
        ("a.csv", b"\x00\x01\x02".to_vec(), "no column `id`"),
        ("a.csv", wide.into_bytes(), "line 1: 5000 columns, at most 4096"),
        (
            "a.csv",
            b"id,type,sid\na,book,1 2 3\n\"b,book,1 2 3\nc,book,1 2 3\n".to_vec(),
            "line 3: a quote in this record is never closed",
        ),
        ("a.csv", b"id,type,\"sid".to_vec(), "line 1: a quote in this record is never closed"),
        (
            "a.csv",
            long.into_bytes(),
            "line 2: a record of more than 1048576 bytes; perhaps a quote is never closed",
        ),
        ("a.jsonl", vec![b' '; 3 << 20], "line 1: more than 1048576 bytes"),
        ("a.xlsx", b"PK".to_vec(), "a source is .jsonl, .ndjson, .json, .csv, .tsv or .parquet"),
        ("items", b"{}".to_vec(), "a source is .jsonl"),
        ("a.parquet", vec![], "not a readable Parquet file"),
        ("a.parquet", b"PAR1PAR1".to_vec(), "not a readable Parquet file"),
        ("a.parquet", b"{\"id\": \"a\"}\n".repeat(10), "not a readable Parquet file"),
        (
            "a.parquet",
            [&b"PAR1"[..], &[0xff; 64], b"\xff\xff\xff\x7fPAR1"].concat(),
            "not a readable Parquet file",
        ),
    ];
    for (name, bytes, expected) in table {
        if name.ends_with("parquet") && !cfg!(feature = "parquet") {
            continue;
        }
        let path = folder.write(name, bytes);
        let message = read(&path, "", OnError::Skip).unwrap_err().to_string();
        assert!(
            message.contains(&format!("{name}: ")) && message.contains(expected),
            "{message}, expected {expected}"
        );
    }
    let message = read(&folder.path("none.csv"), "", OnError::Skip).unwrap_err().to_string();
    assert!(message.contains("none.csv: "), "{message}");
    std::fs::create_dir(folder.path("folder.csv")).unwrap();
    let message = read(&folder.path("folder.csv"), "", OnError::Skip).unwrap_err().to_string();
    assert!(message.contains("a folder, expected a file of items"), "{message}");
}

#[test]
fn quotes_may_be_ordinary_characters() {
    let folder = Folder::new();
    let path = folder.write(
        "a.tsv",
        "id\ttype\tsid\ttitle\na\tbook\t1 2 3\t\"Great Performances\" Cats\nb\tbook\t1 2 3\t\"x\n",
    );
    assert!(read(&path, "", OnError::Skip).is_err());
    let (catalog, _) = read(&path, "quote = false", OnError::Fail).unwrap();
    let title = |id| {
        let (t, rank) = catalog.find(id).unwrap();
        catalog.item(t, rank).title().map(str::to_owned)
    };
    assert_eq!(
        (title("a").as_deref(), title("b").as_deref()),
        (Some("\"Great Performances\" Cats"), Some("\"x"))
    );
}

/// Files of every format, changed at random places: whatever comes of it, it is a result.
#[test]
fn no_file_makes_a_panic() {
    let folder = Folder::new();
    let items = items(40, 21);
    let codes = "{\"id\": \"book:0\", \"sid\": [1, 2, 3]}\n";
    let mut npy =
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<u2', 'fortran_order': False, 'shape': (4, 3), }          \n"
            .to_vec();
    npy.extend([0; 24]);
    let mut seeds = vec![
        ("a.jsonl", jsonl(&items).into_bytes()),
        ("a.csv", csv(&items, ",", "\n").into_bytes()),
        ("codes.jsonl", codes.repeat(3).into_bytes()),
        ("codes.npy", npy),
        ("a.toml", KINDS.as_bytes().to_vec()),
    ];
    #[cfg(feature = "parquet")]
    for options in super::parquets::options() {
        super::parquets::write(&folder.path("seed.parquet"), &items, &options);
        seeds.push(("a.parquet", std::fs::read(folder.path("seed.parquet")).unwrap()));
    }
    // What the parquet crate panics about is caught; its words need not be printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", |location| location.file());
        if !file.contains("/parquet-") && !file.contains("/bytes-") {
            hook(info);
        }
    }));
    let source = folder.write("b.jsonl", jsonl(&items[..4]));
    let (mut dice, mut fine) = (Dice(22), 0);
    for (name, seed) in &seeds {
        for _ in 0..250 {
            let path = folder.write(name, mutate(seed, &mut dice));
            fine += u32::from(match *name {
                "a.toml" => Mapping::read(&path).is_ok(),
                "codes.jsonl" | "codes.npy" => {
                    let sources = Sources::new().file(&source, Mapping::default()).on_error(OnError::Skip);
                    sources.codes(CodesFile::new(&path)).read(&types(), &mut |_, _| ()).is_ok()
                }
                _ => {
                    let sources = Sources::new().file(&path, mapping("")).on_error(OnError::Skip);
                    let _ = sources.infer_types(&mut |_, _| ());
                    sources.read(&types(), &mut |_, _| ()).is_ok()
                }
            });
        }
    }
    // Some changes do no harm: else nothing but the first check was tried.
    assert!(fine > 500, "{fine}");
}

fn mutate(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len().max(1) as u64) as usize;
        match dice.below(5) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0, 0xff, 0x7f, b'"', b'\n'][dice.below(5) as usize],
            3 => {
                let end = (at + dice.below(20) as usize).min(bytes.len());
                let copy = bytes[at.min(end)..end].to_vec();
                bytes.splice(at.min(end)..at.min(end), copy);
            }
            _ => {
                let end = (at + dice.below(20) as usize).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
        }
    }
    bytes
}
