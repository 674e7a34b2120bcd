//! Reader of arrays in numpy's file format.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::path::Path;

use anyhow::{Context, bail, ensure};

/// Array of one of the types of frames and audio.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Values,
}

/// Elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// `|u1`
    U8(Vec<u8>),
    /// `<i2`
    I16(Vec<i16>),
    /// `<f4`
    F32(Vec<f32>),
    /// `<f8`
    F64(Vec<f64>),
}

/// Array of a file.
///
/// # Errors
/// The defect of the file, with its path.
pub fn read(path: &Path) -> anyhow::Result<Array> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    parse(&bytes).with_context(|| path.display().to_string())
}

/// Array of a file's bytes.
///
/// # Errors
/// If they are not numpy's format, or not of one of the types above.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Array> {
    let (header, data) = split(bytes).context("not a .npy file, or truncated in its header")?;
    let header = std::str::from_utf8(header).context("the header is not text")?;
    ensure!(value_of(header, "fortran_order")?.starts_with("False"), "the array is in column-major order");
    let shape = shape(value_of(header, "shape")?)?;
    let descr: String = value_of(header, "descr")?
        .trim_start_matches(['\'', '"'])
        .chars()
        .take_while(|c| !"'\"".contains(*c))
        .collect();
    let size = match descr.as_str() {
        "|u1" => 1,
        "<i2" => 2,
        "<f4" => 4,
        "<f8" => 8,
        other => bail!("elements are {other:?}; |u1, <i2, <f4 and <f8 are understood"),
    };
    let want = shape.iter().try_fold(size, |n: usize, &d| n.checked_mul(d)).context("the shape overflows")?;
    ensure!(data.len() == want, "{descr} {shape:?} takes {want} bytes, the file holds {}", data.len());
    let values = match size {
        1 => Values::U8(data.to_vec()),
        2 => Values::I16(data.as_chunks().0.iter().map(|&b| i16::from_le_bytes(b)).collect()),
        4 => Values::F32(data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        _ => Values::F64(data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()),
    };
    Ok(Array { shape, values })
}

/// Header text and data.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (&[major, _], rest) = rest.split_first_chunk()?;
    let (len, rest) = if major == 1 {
        let (len, rest) = rest.split_first_chunk()?;
        (usize::from(u16::from_le_bytes(*len)), rest)
    } else {
        let (len, rest) = rest.split_first_chunk()?;
        (u32::from_le_bytes(*len) as usize, rest)
    };
    rest.split_at_checked(len)
}

/// Text behind a key of the header's dictionary.
fn value_of<'a>(header: &'a str, key: &str) -> anyhow::Result<&'a str> {
    let at = header.find(&format!("'{key}'")).with_context(|| format!("the header names no {key}"))?;
    let rest = &header[at + key.len() + 2..];
    Ok(rest.trim_start().strip_prefix(':').with_context(|| format!("the header's {key} has no value"))?.trim_start())
}

/// A tuple of numbers.
fn shape(text: &str) -> anyhow::Result<Vec<usize>> {
    let inside = text.strip_prefix('(').and_then(|t| t.split_once(')')).context("the shape is not a tuple")?.0;
    let numbers = inside.split(',').map(str::trim).filter(|n| !n.is_empty());
    numbers.map(|n| n.parse().with_context(|| format!("{n:?} in the shape"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn arrays_of_every_understood_type_are_read() {
        let header =
            |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let array = parse(&file(&header("|u1", "(2, 1, 3)"), &[1, 2, 3, 4, 5, 6])).unwrap();
        assert_eq!(array, Array { shape: vec![2, 1, 3], values: Values::U8(vec![1, 2, 3, 4, 5, 6]) });
        assert_eq!(parse(&file(&header("<i2", "(2,)"), &[0, 1, 255, 255])).unwrap().values, Values::I16(vec![256, -1]));
        let half = 0.5f32.to_le_bytes();
        assert_eq!(parse(&file(&header("<f4", "(1,)"), &half)).unwrap().values, Values::F32(vec![0.5]));
        let half = 0.5f64.to_le_bytes();
        assert_eq!(parse(&file(&header("<f8", "(1,)"), &half)).unwrap().values, Values::F64(vec![0.5]));
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_no_panic() {
        let good = file("{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }\n", &[0, 1, 2, 3]);
        assert!(parse(&good).is_ok());
        for end in 0..good.len() {
            assert!(parse(&good[..end]).is_err(), "{end}");
        }
        for header in [
            "{'descr': '>i2', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<i2', 'fortran_order': True, 'shape': (2,), }",
            "{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
            "{'descr': '<i2', 'shape': (2,), }",
        ] {
            assert!(parse(&file(header, &[0, 1, 2, 3])).is_err(), "{header}");
        }
    }
}
