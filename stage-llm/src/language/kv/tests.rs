//! Error of quantization, and tests that nothing is written where it should not be.

use candle_core::{D, DType, Device, Tensor};
use compute::random::Draws;

use super::*;

const QUANTIZED: [KvFormat; 2] = [KvFormat::Q8, KvFormat::Q4];

/// Widths of a head, of Vidi 1.5 9B and of Vidi 7B.
const WIDTHS: [usize; 2] = [256, 128];

/// Keys or values of heads of a width: Gaussian, heavy-tailed (Student's t of 3 degrees), or with a few channels that stand
/// out in every token, eight of 256.
fn rows(kind: &str, n: usize, width: usize, draws: &Draws) -> Tensor {
    let normal = draws.normal((n, width)).unwrap();
    match kind {
        "gaussian" => normal,
        "heavy tails" => {
            let chi = draws.normal((3, n, width)).unwrap().sqr().unwrap().sum(0).unwrap();
            (normal / chi.sqrt().unwrap()).unwrap()
        }
        _ => {
            let offset = |c: usize| if c % 37 != 5 { 0f32 } else { [10.0, -10.0][c % 2] };
            let offsets = Tensor::from_iter((0..width).map(offset), &Device::Cpu).unwrap();
            normal.broadcast_add(&offsets).unwrap()
        }
    }
}

fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let scale = (q.dims()[1] as f64).sqrt();
    let s = (((q.matmul(&k.t().unwrap()).unwrap() / scale).unwrap() / 50.0).unwrap().tanh().unwrap() * 50.0).unwrap();
    let e = s.broadcast_sub(&s.max_keepdim(D::Minus1).unwrap()).unwrap().exp().unwrap();
    e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap().matmul(v).unwrap()
}

/// Root mean square of the difference over that of the exact values.
fn error(got: &Tensor, exact: &Tensor) -> f32 {
    let rms = |t: Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    rms((got - exact).unwrap()) / rms(exact.clone())
}

fn through(format: KvFormat, rows: &Tensor) -> Tensor {
    let (n, width) = rows.dims2().unwrap();
    let kv = KvTensor::new(format, 1, n, width, &Device::Cpu).unwrap();
    kv.write(rows, 0).unwrap();
    kv.dequantize(0..n).unwrap().squeeze(0).unwrap()
}

#[test]
fn the_error_of_the_outcome_is_a_hundredth_at_8_bits_and_an_eighth_at_4() {
    let draws = Draws::default();
    // Bounds on the error of keys and values and on that of attention's output, for 8 and 4 bits.
    let kinds = [
        ("gaussian", [(0.007, 0.010), (0.085, 0.125)]),
        ("heavy tails", [(0.020, 0.045), (0.125, 0.30)]),
        ("channels that stand out", [(0.014, 0.002), (0.125, 0.02)]),
    ];
    for (width, (kind, bounds)) in WIDTHS.into_iter().flat_map(|width| kinds.map(|kind| (width, kind))) {
        let (k, v) = (rows(kind, 2048, width, &draws), rows(kind, 2048, width, &draws));
        let q = draws.normal((32, width)).unwrap();
        let exact = attention(&q, &k, &v);
        // A score is a sum over the width: of fewer values with heavy tails, more is left of the errors of single ones.
        let wider = (256.0 / width as f32).sqrt();
        for (format, (values, outcome)) in QUANTIZED.into_iter().zip(bounds) {
            let (k8, v8) = (through(format, &k), through(format, &v));
            let (of_k, of_v) = (error(&k8, &k), error(&v8, &v));
            let of_outcome = error(&attention(&q, &k8, &v8), &exact);
            println!("{kind} of {width}, {format:?}: keys {of_k:.4}, values {of_v:.4}, outcome {of_outcome:.4}");
            assert!(of_k < values && of_v < values && of_outcome < outcome * wider, "{kind} of {width}, {format:?}");
        }
    }
}

#[test]
fn a_value_takes_at_most_8_and_a_half_and_4_and_a_half_bits() {
    for width in WIDTHS {
        let bits = |f: KvFormat| f.bytes_per_token(8, width) as f64 * 8.0 / (2.0 * 8.0 * width as f64);
        assert_eq!((bits(KvFormat::Q8), bits(KvFormat::Q4), bits(KvFormat::Dense(DType::BF16))), (8.25, 4.5, 16.0));
    }
}

#[test]
fn any_cut_of_columns_of_a_wider_matrix_gives_the_same_as_all_at_once() {
    let draws = Draws::default();
    for (heads, width) in [(2, 256), (2, 128), (3, 8), (2, 40), (1, 72)] {
        let wide = draws.normal((11, 5 + 2 * heads * width)).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let rows = wide.to_dtype(dtype).unwrap().narrow(1, 3, heads * width).unwrap();
            for format in [KvFormat::Dense(dtype), KvFormat::Q8, KvFormat::Q4] {
                let new = || KvTensor::new(format, heads, 16, width, &Device::Cpu).unwrap();
                let (whole, parts) = (new(), new());
                whole.write(&rows.contiguous().unwrap(), 2).unwrap();
                for (start, n) in [(7, 4), (0, 1), (1, 6)] {
                    parts.write(&rows.narrow(0, start, n).unwrap(), 2 + start).unwrap();
                }
                let all = |kv: &KvTensor| {
                    let t = kv.dequantize(0..16).unwrap().to_dtype(DType::F32).unwrap();
                    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(all(&whole), all(&parts));
                let exact = rows.to_dtype(DType::F32).unwrap().reshape((11, heads, width)).unwrap();
                let exact = exact.transpose(0, 1).unwrap().contiguous().unwrap();
                let back = whole.dequantize(2..13).unwrap().to_dtype(DType::F32).unwrap();
                assert!(error(&back, &exact) < 0.12, "{format:?}, {heads} x {width}");
                let before = whole.dequantize(0..2).unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(before.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
            }
        }
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let kv = KvTensor::new(KvFormat::Q8, 2, 4, 8, &Device::Cpu).unwrap();
    let rows = |n: usize, width: usize| Tensor::zeros((n, width), DType::F32, &Device::Cpu).unwrap();
    assert!(kv.write(&rows(3, 16), 2).is_err() && kv.write(&rows(1, 8), 0).is_err());
    assert!(KvTensor::new(KvFormat::Q8, 2, 4, 12, &Device::Cpu).is_err());
}

#[test]
fn tensors_in_one_piece_of_memory_do_not_touch_each_other() {
    let (heads, capacity, width) = (2, 5, 24);
    let rows = Draws::default().normal((3, heads * width)).unwrap();
    for format in [KvFormat::Dense(DType::F32), KvFormat::Q8, KvFormat::Q4] {
        let several = KvTensor::several(3, format, heads, capacity, width, &Device::Cpu).unwrap();
        let alone = KvTensor::new(format, heads, capacity, width, &Device::Cpu).unwrap();
        for kv in [&several[1], &alone] {
            kv.write(&rows, 1).unwrap();
        }
        let read = |kv: &KvTensor| kv.dequantize(0..capacity).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read(&several[1]), read(&alone), "{format:?}");
        for neighbour in [&several[0], &several[2]] {
            assert!(read(neighbour).iter().all(|v| *v == 0.0), "{format:?}");
        }
        assert!(read(&alone).iter().any(|v| *v != 0.0), "{format:?}");
    }
}
