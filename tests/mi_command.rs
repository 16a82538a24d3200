//! `headscope mi` on any arrays: whole numbers keep their digits, labels are labels, what cannot be answered is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::samples::{labels, normals};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// Arrays in a file: name, type, shape, bytes.
type Arrays<'a> = Vec<(&'a str, Dtype, Vec<usize>, Vec<u8>)>;

fn write(arrays: &Arrays, file: &Path) {
    let view = |(name, dtype, shape, bytes): &'_ (&str, Dtype, Vec<usize>, Vec<u8>)| {
        (name.to_string(), TensorView::new(*dtype, shape.clone(), Box::leak(bytes.clone().into_boxed_slice())).unwrap())
    };
    safetensors::serialize_to_file(arrays.iter().map(view), None, file).unwrap();
}

fn bytes<T, const N: usize>(values: impl IntoIterator<Item = T>, to: fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(to).collect()
}

fn mi(file: &Path, y: &str, more: &[&str]) -> Output {
    let file = file.to_str().unwrap();
    let words = [&["mi", file, "--x", "x", "--y", y][..], more].concat();
    Command::new(env!("CARGO_BIN_EXE_headscope")).args(words).output().unwrap()
}

#[track_caller]
fn done(file: &Path, y: &str, more: &[&str]) -> Value {
    let output = mi(file, y, &[more, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{y} {more:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a call that is refused.
#[track_caller]
fn refused(file: &Path, y: &str, more: &[&str]) -> String {
    let output = mi(file, y, more);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{y} {more:?}");
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    error
}

fn warnings(found: &Value) -> String {
    found["warnings"].to_string()
}

/// 300 samples: x says which of three classes y is.
fn planted(folder: &Path) -> (std::path::PathBuf, Vec<usize>) {
    let classes = labels(300, 3, 1);
    let noise = normals(300, 1, 2);
    let x: Vec<f64> = classes.iter().zip(&noise).map(|(&class, noise)| class as f64 + 0.2 * noise).collect();
    let far = |base: i128| classes.iter().map(move |&class| base + class as i128).collect::<Vec<i128>>();
    let small = far(0);
    let shape = || vec![300];
    let arrays: Arrays = vec![
        ("x", Dtype::F64, shape(), bytes(x.clone(), f64::to_le_bytes)),
        ("i64", Dtype::I64, shape(), bytes(far(1 << 62).iter().map(|&v| v as i64), i64::to_le_bytes)),
        ("least", Dtype::I64, shape(), bytes(far(i64::MIN.into()).iter().map(|&v| v as i64), i64::to_le_bytes)),
        ("u64", Dtype::U64, shape(), bytes(far((1 << 64) - 3).iter().map(|&v| v as u64), u64::to_le_bytes)),
        ("i32", Dtype::I32, shape(), bytes(far(-7).iter().map(|&v| v as i32), i32::to_le_bytes)),
        ("u32", Dtype::U32, shape(), bytes(far((1 << 32) - 3).iter().map(|&v| v as u32), u32::to_le_bytes)),
        ("i16", Dtype::I16, shape(), bytes(far(-300).iter().map(|&v| v as i16), i16::to_le_bytes)),
        ("u16", Dtype::U16, shape(), bytes(far(65533).iter().map(|&v| v as u16), u16::to_le_bytes)),
        ("i8", Dtype::I8, shape(), bytes(far(-128).iter().map(|&v| v as i8), i8::to_le_bytes)),
        ("u8", Dtype::U8, shape(), bytes(far(253).iter().map(|&v| v as u8), u8::to_le_bytes)),
        ("f32", Dtype::F32, vec![300, 1], bytes(small.iter().map(|&v| v as f32), f32::to_le_bytes)),
        ("bool", Dtype::BOOL, shape(), small.iter().map(|&v| u8::from(v > 0)).collect()),
        // Two columns that only together are the class.
        ("pair", Dtype::U8, vec![300, 2], small.iter().flat_map(|&v| [u8::from(v > 0), u8::from(v > 1)]).collect()),
        ("continuous", Dtype::F64, shape(), bytes(normals(300, 1, 3), f64::to_le_bytes)),
        ("whole", Dtype::F64, shape(), bytes((0..300).map(f64::from), f64::to_le_bytes)),
        ("own", Dtype::I64, shape(), bytes(0..300, i64::to_le_bytes)),
        (
            "apart",
            Dtype::I64,
            shape(),
            bytes((0..300).map(|i| if i % 2 == 0 { i64::MIN } else { i64::MAX }), i64::to_le_bytes),
        ),
        ("nan", Dtype::F32, shape(), bytes((0..300).map(|i| if i == 9 { f32::NAN } else { 1.0 }), f32::to_le_bytes)),
        ("constant", Dtype::I64, shape(), bytes([i64::MAX; 300], i64::to_le_bytes)),
        ("huge", Dtype::F64, shape(), bytes(x.iter().map(|x| x * 1e300), f64::to_le_bytes)),
        ("big", Dtype::F64, shape(), bytes(x.iter().map(|x| 1e99 * (x + 0.1 * x.sin())), f64::to_le_bytes)),
        ("short", Dtype::F64, vec![299], bytes(x[1..].iter().copied(), f64::to_le_bytes)),
        ("one", Dtype::F64, vec![1], bytes([1.0], f64::to_le_bytes)),
        ("none", Dtype::F64, vec![0], vec![]),
        ("flat", Dtype::F64, vec![300, 0], vec![]),
        ("scalar", Dtype::F64, vec![], bytes([1.0], f64::to_le_bytes)),
        ("cube", Dtype::U8, vec![300, 1, 1], vec![1; 300]),
    ];
    let file = folder.join("arrays.safetensors");
    write(&arrays, &file);
    (file, classes)
}

#[test]
fn labels_of_every_type_are_the_same_labels() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = planted(folder.path());
    for estimator in [&["--estimator", "ross"][..], &["--estimator", "vinfo", "--labels"]] {
        let expected = done(&file, "f32", estimator);
        assert!(expected["estimate"].as_f64().unwrap() > 0.8, "{expected}");
        let all = ["i64", "pair", "u64", "least", "i32", "u32", "i16", "u16", "i8", "u8"];
        for &name in if estimator.len() == 2 { &all[..] } else { &all[..2] } {
            assert_eq!(done(&file, name, estimator), expected, "{name} by {estimator:?}");
        }
        let bit = done(&file, "bool", estimator);
        assert!(bit["estimate"].as_f64().unwrap() > 0.5 && bit["estimate"].as_f64() < expected["estimate"].as_f64());
    }
    // `--labels` says of ross what is so anyway.
    assert_eq!(done(&file, "i64", &["--estimator", "ross", "--labels"]), done(&file, "i64", &["--estimator", "ross"]));
    // As numbers, too, they keep their digits.
    for estimator in ["gaussian", "binned"] {
        let expected = done(&file, "f32", &["--estimator", estimator])["estimate"].as_f64().unwrap();
        for name in ["i64", "least", "u64", "i8"] {
            let found = done(&file, name, &["--estimator", estimator])["estimate"].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{name} by {estimator}: {found} {expected}");
        }
    }
    assert!(refused(&file, "apart", &[]).contains("within 2^53 of each other"));
    assert!(done(&file, "apart", &["--estimator", "ross"])["estimate"].as_f64().unwrap() < 0.2);
}

#[test]
fn labels_under_distances_are_flagged() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = planted(folder.path());
    for name in ["i64", "u8", "f32", "bool"] {
        for estimator in ["ksg", "ksg2"] {
            let found = done(&file, name, &["--estimator", estimator]);
            assert!(warnings(&found).contains("ties: in 1 column(s) of y up to 100.0 %"), "{name}: {found}");
        }
    }
    let sound = done(&file, "continuous", &["--estimator", "ksg"]);
    assert!(!warnings(&sound).contains("ties"), "{sound}");
}

#[test]
fn continuous_values_are_no_labels() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = planted(folder.path());
    let labelled = ["vinfo", "vinfo-mlp", "infonce", "nwj", "mine", "ross"];
    for estimator in labelled {
        let said = refused(&file, "continuous", &["--estimator", estimator, "--labels"]);
        assert!(said.contains("whole numbers or booleans in continuous"), "{said}");
    }
    for estimator in ["ross", "vinfo", "infonce"] {
        for (name, words) in [
            ("nan", "found NaN at index 9"),
            ("whole", "300 different ones in 300 samples"),
            ("own", "300 different ones in 300 samples"),
        ] {
            let said = refused(&file, name, &["--estimator", estimator, "--labels"]);
            assert!(said.contains(words), "{said}");
        }
    }
    for estimator in ["ksg", "gaussian", "binned", "cca", "lnc"] {
        assert!(
            refused(&file, "i8", &["--estimator", estimator, "--labels"]).contains("--labels: expected one of ross")
        );
    }
}

#[test]
fn neighbours_are_fewer_than_half_of_the_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = planted(folder.path());
    for (k, estimators) in [
        ("150", &["ksg", "ksg2", "lnc", "ross"][..]),
        ("299", &["ksg", "ross"]),
        ("300", &["ksg"]),
        ("18446744073709551615", &["ksg", "lnc"]),
    ] {
        for &estimator in estimators {
            let y = if estimator == "ross" { "i8" } else { "continuous" };
            let said = refused(&file, y, &["--estimator", estimator, "--k", k]);
            assert!(said.contains("k: expected less than 150, half of the 300 samples"), "{said}");
        }
    }
    assert!(refused(&file, "continuous", &["--k", "0"]).contains("k: expected 1 or more, found 0"));
    assert!(
        refused(&file, "no such array", &["--k", "0"]).contains("k: expected 1 or more"),
        "before anything is read"
    );
    let found = done(&file, "continuous", &["--k", "149"]);
    assert!(found["low"].is_f64() && found["high"].is_f64() && warnings(&found).contains("596 or more"), "{found}");
}

#[test]
fn no_interval_is_said_and_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("few.safetensors");
    // 12 samples are enough for ten columns as a whole, and not in halves.
    let arrays: Arrays = vec![
        ("x", Dtype::F64, vec![20, 8], bytes(normals(20, 8, 1), f64::to_le_bytes)),
        ("y", Dtype::F64, vec![20, 8], bytes(normals(20, 8, 2), f64::to_le_bytes)),
    ];
    write(&arrays, &file);
    let found = done(&file, "y", &["--estimator", "gaussian"]);
    assert!(found["low"].is_null() && found["high"].is_null() && found["estimate"].is_f64(), "{found}");
    assert!(warnings(&found).contains("no interval: half of the samples are not enough"), "{found}");
    let text = String::from_utf8(mi(&file, "y", &["--estimator", "gaussian"]).stdout).unwrap();
    assert!(text.contains("warning: no interval") && !text.contains("inf") && !text.contains(" to "), "{text}");
}

#[test]
fn nonsense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = planted(folder.path());
    for (y, words) in [
        ("nan", "finite values, found NaN at index 9"),
        ("constant", "a constant"),
        ("huge", "between 1e-100 and 1e100"),
        ("short", "as many samples as x"),
        ("one", "as many samples as x"),
        ("none", "as many samples as x"),
        ("flat", "at least 8 samples and 1 dimension, found [300, 0]"),
        ("scalar", "[sample, dimension] or [sample], found []"),
        ("cube", "found [300, 1, 1]"),
        ("x", "column 0 of x again"),
        ("no such array", "there is no array `no such array`"),
    ] {
        let said = refused(&file, y, &[]);
        assert!(said.contains(words), "{y}: {said}");
    }
    for more in [["--level", "1"], ["--level", "0.9999999999999999"], ["--level", "nan"], ["--permutations", "2000000"]]
    {
        refused(&file, "continuous", &more);
    }
    let big = done(&file, "big", &["--estimator", "gaussian"]);
    assert!(big["estimate"].as_f64().unwrap() > 1.0, "{big}");
    let text = String::from_utf8(mi(&file, "continuous", &["--level", "0.999"]).stdout).unwrap();
    assert!(text.contains("99.9 % interval"), "{text}");
    // One sample.
    let lone = folder.path().join("lone.safetensors");
    let one = || bytes([1.0], f64::to_le_bytes);
    write(&vec![("x", Dtype::F64, vec![1], one()), ("y", Dtype::F64, vec![1], one())], &lone);
    for estimator in ["ksg", "gaussian", "binned", "cca", "vinfo", "infonce", "ross"] {
        assert!(refused(&lone, "y", &["--estimator", estimator]).contains("at least 8 samples"), "{estimator}");
    }
    let text = folder.path().join("text.safetensors");
    std::fs::write(&text, "no arrays").unwrap();
    assert!(refused(&text, "y", &[]).contains("expected a safetensors file"));
    assert!(refused(folder.path(), "y", &[]).contains("cannot read"));
}
