//! The resize against Pillow, bit for bit, on pictures that a formula makes (golden/make_resize.py).

use protocol::plan::FRAME_BYTES;
use sha2::{Digest, Sha256};
use stage_decode::picture::Picture;
use stage_decode::resize::Resizer;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Rows of RGB; the formulas are those of golden/make_resize.py.
fn picture(width: u64, height: u64, content: &str) -> Vec<u8> {
    if content == "noise" {
        let mut state = 12_345u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        return std::iter::repeat_with(next).take((width * height * 3) as usize).collect();
    }
    let value = |x: u64, y: u64, k: u64| match content {
        "smooth" => {
            let v = (x * (k + 1) * 255 / width + y * (3 - k) * 255 / height + x * y / 997) % 511;
            if v > 255 { 510 - v } else { v }
        }
        "graphics" => ((((x / 5 + y / 3 * 7 + k * 11) * 2_654_435_761) % (1 << 32)) >> 31) * 255,
        other => panic!("no formula for {other}"),
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    pixels.flat_map(|(x, y)| [0, 1, 2].map(|k| value(x, y, k) as u8)).collect()
}

#[test]
fn every_size_comes_out_as_from_pillow() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/resize.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 12, "{} cases", cases.len());
    let mut resizer = Resizer::default();
    let mut out = vec![0; FRAME_BYTES];
    // Twice over: the second time with other sizes' weights and rows left behind.
    for case in cases.iter().chain(cases) {
        let field = |name: &str| case[name].as_str().unwrap();
        let (width, height) = (case["width"].as_u64().unwrap(), case["height"].as_u64().unwrap());
        let rgb = picture(width, height, field("content"));
        assert_eq!(hex(&rgb), field("input"), "the picture itself differs: {}", field("name"));
        resizer.resize(&Picture::from_rgb(width as usize, height as usize, &rgb), &mut out);
        assert_eq!(hex(&out), field("output"), "{}", field("name"));
    }
}
