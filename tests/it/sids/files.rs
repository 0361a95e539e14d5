//! Files of vectors, codes and codebooks: read as written, refused with the place when malformed.

use half::{bf16, f16};
use sidereal::sid::{Codebooks, Codes, FitOptions, Vectors, fit};

use super::clustered;

fn quiet(_: &'static str, _: u64, _: u64) {}

/// A `.npy` file of any version.
fn npy(version: u8, dict: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    match version {
        1 => bytes.extend((dict.len() as u16).to_le_bytes()),
        _ => bytes.extend((dict.len() as u32).to_le_bytes()),
    }
    bytes.extend(dict.bytes());
    bytes.extend(data);
    bytes
}

fn read(name: &str, bytes: &[u8]) -> sidereal::Result<Vectors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    // The map outlives the name.
    Vectors::open(&path)
}

fn all(vectors: &Vectors) -> Vec<f32> {
    let mut values = vec![0.0; vectors.rows() * vectors.dim()];
    vectors.read(0..vectors.rows(), &mut values);
    values
}

#[test]
fn every_type_and_version_is_read() {
    let values: Vec<f32> = vec![1.0, -2.5, 0.0, 1024.0, -0.125, 3.0];
    let f2 = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>();
    let f4 = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let f8 = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect::<Vec<u8>>();
    for (descr, data) in [("<f2", &f2), ("<f4", &f4), ("<f8", &f8)] {
        for version in 1..=3 {
            for dict in [
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (3, 2), }}   \n"),
                format!("{{\"shape\":(3,2),\"fortran_order\":False,\"descr\":\"{descr}\"}}"),
            ] {
                let vectors = read("v.npy", &npy(version, &dict, data)).unwrap();
                assert_eq!((vectors.rows(), vectors.dim()), (3, 2));
                assert_eq!(all(&vectors), values, "{descr} {version}");
                let mut row = [0.0; 2];
                vectors.read(2..3, &mut row);
                assert_eq!(row, [-0.125, 3.0]);
            }
        }
    }
    let none = npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 7), }", &[]);
    assert_eq!(read("v.npy", &none).unwrap().rows(), 0);
}

#[test]
fn malformed_npy_files_are_refused_with_the_place() {
    let dict = |descr: &str, fortran: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}")
    };
    let good = dict("'<f4'", "False", "(1, 2)");
    let data = [0u8; 8];
    let table: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "byte 0"),
        (b"PK\x03\x04 not an array at all".to_vec(), "byte 0"),
        (npy(1, &good, &data)[..9].to_vec(), "byte 0"),
        (npy(9, &good, &data), "byte 6: format version 9"),
        (npy(2, &good, &data)[..11].to_vec(), "byte 8"),
        (npy(1, &good, &[])[..40].to_vec(), "byte 8: the header is"),
        (
            {
                let mut bytes = npy(3, &good, &data);
                bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
                bytes
            },
            "byte 8: the header is 4294967295 bytes long; at most 65536",
        ),
        (npy(1, &good, &data[..7]), "takes 8 bytes, but 7 follow"),
        (npy(1, &good, &[0; 12]), "takes 8 bytes, but 12 follow"),
        (npy(1, &dict("'<f4'", "True", "(1, 2)"), &data), "fortran_order: True"),
        (npy(1, &dict("'>f4'", "False", "(1, 2)"), &data), "type '>f4'"),
        (npy(1, &dict("'<i8'", "False", "(1, 1)"), &data), "type '<i8'"),
        (npy(1, &dict("[('x', '<f4')]", "False", "(2,)"), &data), "expected a string"),
        (npy(1, &dict("'<f4'", "0", "(1, 2)"), &data), "expected True or False"),
        (npy(1, &dict("'<f4'", "False", "(2,)"), &data), "expected [rows, dim]"),
        (npy(1, &dict("'<f4'", "False", "()"), &data[..4]), "expected [rows, dim]"),
        (npy(1, &dict("'<f4'", "False", "(1, 2, 1)"), &data), "expected [rows, dim]"),
        (npy(1, &dict("'<f4'", "False", "(2, 0)"), &[]), "expected [rows, dim]"),
        (npy(1, &dict("'<f4'", "False", "(-1, 2)"), &data), "expected a size"),
        (npy(1, &dict("'<f4'", "False", "(1, 99999999999999999999)"), &data), "expected a size"),
        (npy(1, &dict("'<f4'", "False", "(4294967296, 4294967296)"), &data), "more than can be addressed"),
        (npy(1, &dict("'<f4'", "False", "(4294967296000000, 2)"), &data), "takes 34359738368000000 bytes"),
        (npy(1, "{'descr': '<f4', 'shape': (1, 2)}", &data), "key 'fortran_order' is missing"),
        (npy(1, "{'descr': '<f4', 'descr': '<f4'}", &data), "key 'descr' occurs twice"),
        (npy(1, "{'descr': '<f4', 'more': 1}", &data), "key 'more' is unknown"),
        (npy(1, "{'descr': '<f4", &data), "a closed string"),
        (npy(1, &format!("{good} x"), &data), "the end of the header"),
        (npy(1, "[]", &data), "expected `{`, found `[]`"),
    ];
    for (bytes, expected) in table {
        let error = read("v.npy", &bytes).expect_err(expected).to_string();
        assert!(error.contains("v.npy: ") && error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

/// A safetensors file of tensors of zeros but for counting first bytes.
fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(
            (*name).into(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn tensors_are_found_by_name_or_alone() {
    let values = [1.0f32, -2.0, 0.5, 8.0];
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let brains: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.safetensors");
    let open = |name: &str| Vectors::open(format!("{}{name}", path.display()));
    std::fs::write(
        &path,
        safetensors(&[("bias", "F32", &[4], f32s.clone()), ("emb", "F16", &[2, 2], halves.clone())]),
    )
    .unwrap();
    assert_eq!(all(&open("").unwrap()), values);
    assert_eq!(all(&open(":emb").unwrap()), values);
    for (name, expected) in [
        (":bias", "shape [4]: expected [rows, dim]"),
        (":none", "has no tensor \"none\"; its first are [\"bias\", \"emb\"]"),
    ] {
        let error = open(name).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    std::fs::write(
        &path,
        safetensors(&[
            ("a", "BF16", &[2, 2], brains),
            ("b", "F32", &[2, 2], f32s),
            ("c", "I32", &[1, 1], vec![0; 4]),
        ]),
    )
    .unwrap();
    assert_eq!((all(&open(":a").unwrap()), all(&open(":b").unwrap())), (values.to_vec(), values.to_vec()));
    let error = open("").unwrap_err().to_string();
    assert!(error.contains("several tensors of two sizes (\"a\", \"b\", …)"), "{error}");
    let error = open(":c").unwrap_err().to_string();
    assert!(error.contains("tensor \"c\" is I32"), "{error}");
    std::fs::write(&path, safetensors(&[])).unwrap();
    assert!(open("").unwrap_err().to_string().contains("no tensor of two sizes"));
    std::fs::write(&path, [1, 2, 3]).unwrap();
    assert!(open("").unwrap_err().to_string().contains("3 bytes"));
    let error = Vectors::open("vectors.csv").unwrap_err().to_string();
    assert!(error.contains("neither FILE.npy nor FILE.safetensors"), "{error}");
    assert!(Vectors::open(dir.path().join("none.npy")).is_err());
}

#[test]
fn codes_are_read_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codes.npy");
    for (levels, values) in [(1, vec![]), (3, vec![0, 1, 2, 65_535, 7, 0]), (2, (0..2000).collect())] {
        let codes = Codes::new(levels, values);
        codes.write(&path).unwrap();
        assert_eq!(Codes::read(&path).unwrap(), codes);
        let bytes = std::fs::read(&path).unwrap();
        let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((header % 64, bytes[header - 1]), (0, b'\n'), "as numpy writes it");
    }
    for (dict, data, expected) in [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", vec![0; 4], "type '<f4'"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (2,), }", vec![0; 4], "expected [rows, levels]"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (2, 0), }", vec![], "must have a code"),
    ] {
        std::fs::write(&path, npy(1, dict, &data)).unwrap();
        let error = Codes::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn codebooks_are_read_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.safetensors");
    let of = |name: &str, dim: usize, unique: Option<usize>| {
        let vectors = Vectors::from_rows(dim, clustered(300, dim, 4, dim as u64)).unwrap();
        let mut options = FitOptions::new([4, 6]);
        (options.unique, options.seed, options.normalize) = (unique, 7, unique.is_none());
        fit(name, &vectors, &options, &quiet).unwrap().codebooks
    };
    let books = Codebooks { types: vec![of("book", 3, Some(1)), of("film", 5, None)] };
    books.write(&path).unwrap();
    let mut again = Codebooks::read(&path).unwrap();
    for (read, written) in again.types.iter_mut().zip(&books.types) {
        for (read, written) in read.errors.iter_mut().zip(&written.errors) {
            // JSON may cost a float64 its last bit.
            assert!((*read / written - 1.0).abs() < 1e-15, "{read} {written}");
            *read = *written;
        }
    }
    assert_eq!(again, books);
    assert_eq!(again.of_type(Some("film")).unwrap().dim(), 5);
    let error = again.of_type(Some("song")).unwrap_err().to_string();
    assert!(error.contains("no codebooks of `song`; there are of book, film"), "{error}");
    assert!(again.of_type(None).unwrap_err().to_string().contains("name one of book, film"));
    let twice = Codebooks { types: vec![books.types[0].clone(), books.types[0].clone()] };
    assert!(twice.write(&path).unwrap_err().to_string().contains("a second type named `book`"));
}

#[test]
fn malformed_codebooks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.safetensors");
    let put = |types: &str, tensors: &str, data: &[f32]| {
        let metadata = serde_json::json!({"format": "sidereal-codebooks", "version": "1", "types": types});
        let header = format!("{{\"__metadata__\": {metadata}{tensors}}}");
        let data: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
            .unwrap();
        Codebooks::read(&path).map(|_| ()).map_err(|e| e.to_string())
    };
    let described = |levels: &str, unique: &str, errors: &str| {
        format!(
            r#"[{{"name": "t", "levels": {levels}, "unique": {unique}, "normalize": false, "seed": 0, "rows": 1, "errors": {errors}}}]"#
        )
    };
    let tensor = r#", "t.0": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}"#;
    let good = described("[2]", "null", "[1.0, 0.5]");
    assert_eq!(put(&good, tensor, &[1.0, 2.0]), Ok(()));
    for (types, tensors, data, expected) in [
        ("[", tensor, &[1.0, 2.0][..], "metadata, types: EOF"),
        (&good, "", &[], "there is no tensor \"t.0\""),
        (
            &good,
            r#", "t.0": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}"#,
            &[1.0, 2.0],
            "expected [2, 2] F32, found [1, 2] F32",
        ),
        (
            &good,
            r#", "t.0": {"dtype": "I32", "shape": [2, 1], "data_offsets": [0, 8]}"#,
            &[1.0, 2.0],
            "found [2, 1] I32",
        ),
        (
            &good,
            r#", "t.0": {"dtype": "F32", "shape": [2, 0], "data_offsets": [0, 0]}"#,
            &[],
            "found [2, 0] F32",
        ),
        (&good, tensor, &[1.0, f32::NAN], "row 1, column 0: NaN"),
        (&described("[]", "null", "[1.0]"), tensor, &[1.0, 2.0], "expected 1 to 8 of 1 to 65536 codes"),
        (&described("[2]", "0", "[1.0, 0.5]"), tensor, &[1.0, 2.0], "levels [2, 0]"),
        (&described("[2]", "null", "[1.0]"), tensor, &[1.0, 2.0], "1 errors, expected 2"),
        (&described("[2, 3]", "null", "[1.0, 1.0, 1.0]"), tensor, &[1.0, 2.0], "there is no tensor \"t.1\""),
        (&good.replace("\"rows\"", "\"columns\""), tensor, &[1.0, 2.0], "unknown field"),
    ] {
        let error = put(types, tensors, data).expect_err(expected);
        assert!(
            error.contains("books.safetensors: ") && error.contains(expected),
            "{error:?} lacks {expected:?}"
        );
    }
    std::fs::write(&path, safetensors(&[])).unwrap();
    let error = Codebooks::read(&path).unwrap_err().to_string();
    assert!(error.contains("does not say that this is a sidereal-codebooks file of version 1"), "{error}");
}
