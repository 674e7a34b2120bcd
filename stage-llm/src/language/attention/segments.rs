//! Attention of a text token to the text before it, to all image tokens and to all audio tokens, in one operation.
//!
//! Each of the three is a softmax of its own; their results are summed before the one output projection, and rounded
//! once.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::blockwise::{KeySource, attend_to};
use super::{Queries, Scoring, Segment, Visible};
use crate::language::kv::KvTensor;

/// `sum over segments of softmax(cap(q kᵀ · scale)) v`: `[n, heads * head_dim]` in the queries' type. Up to three
/// segments; every query must see a key of each.
///
/// # Errors
/// Errors of candle; shapes and types that do not match.
pub fn attend_segments(queries: Queries<'_>, segments: &[Segment<'_>], scoring: Scoring) -> Result<Tensor> {
    if segments.len() > 3 {
        candle_core::bail!("attention refused: {} segments are more than three", segments.len());
    }
    check(queries, segments)?;
    #[cfg(feature = "cuda")]
    if queries.plain.device().is_cuda() {
        return super::cuda::attend(queries, segments, scoring);
    }
    merged(added(None, queries, segments, scoring)?, queries)
}

/// Refuses queries that do not match the keys and values of each segment.
pub(super) fn check(queries: Queries<'_>, segments: &[Segment<'_>]) -> Result<()> {
    let Some(first) = segments.first() else { candle_core::bail!("attention without keys") };
    let (head_dim, kv_heads) = (first.keys.head_dim(), first.keys.kv_heads());
    let (n, width) = queries.plain.dims2()?;
    let group = width / (kv_heads * head_dim);
    let same = |kv: &KvTensor| kv.kv_heads() == kv_heads && kv.head_dim() == head_dim;
    if group * kv_heads * head_dim != width
        || queries.rotated.dims2()? != (n, width)
        || segments.iter().any(|s| !same(s.keys) || !same(s.values) || s.len == 0 || s.len > s.keys.capacity())
    {
        candle_core::bail!(
            "attention refused: queries {n} x {width} do not match {} segments of {kv_heads} heads x {head_dim}",
            segments.len()
        );
    }
    Ok(())
}

/// Sum of attention to each segment, on the CPU: `[heads, n, head_dim]` in f32, added to `mixed`, in the segments' order.
pub(super) fn added(
    mut mixed: Option<Tensor>,
    queries: Queries<'_>,
    segments: &[Segment<'_>],
    scoring: Scoring,
) -> Result<Option<Tensor>> {
    for segment in segments {
        let (n, width) = queries.plain.dims2()?;
        let head_dim = segment.keys.head_dim();
        let by_head = |x: &Tensor| x.reshape((n, width / head_dim, head_dim))?.transpose(0, 1)?.contiguous();
        let q = match segment.visible {
            Visible::All => by_head(queries.plain)?,
            Visible::Causal { .. } => by_head(queries.rotated)?,
        };
        let part = attend_to(&q, segment, scoring, segment.visible)?; // [heads, n, head_dim]
        mixed = Some(match mixed {
            None => part,
            Some(before) => (before + part)?,
        });
    }
    Ok(mixed)
}

/// What was mixed, `[heads, n, head_dim]`, as rows `[n, heads * head_dim]` in the queries' type.
pub(super) fn merged(mixed: Option<Tensor>, queries: Queries<'_>) -> Result<Tensor> {
    let mixed = mixed.expect("one segment at least was checked before. This is a bug.");
    mixed.transpose(0, 1)?.reshape(queries.plain.dims2()?)?.to_dtype(queries.plain.dtype())
}

impl KeySource for Segment<'_> {
    fn dims(&self) -> Result<(usize, usize)> {
        Ok((self.keys.kv_heads(), self.len))
    }

    fn block(&self, keys: Range<usize>) -> Result<(Tensor, Tensor)> {
        let wide = |kv: &KvTensor| kv.dequantize(keys.clone())?.to_dtype(DType::F32);
        Ok((wide(self.keys)?, wide(self.values)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::attention::blockwise::attend;
    use crate::language::kv::KvFormat;
    use candle_core::Device;
    use compute::random::Draws;

    /// Rows of numbers of either sign.
    fn random(draws: &Draws, n: usize, width: usize) -> Tensor {
        draws.normal((n, width)).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    const SCORING: Scoring = Scoring { scale: 0.25, cap: Some(10.0) };

    /// Keys or values of two heads of 16, for four heads of queries.
    fn filled(format: KvFormat, rows: &Tensor) -> KvTensor {
        let n = rows.dim(0).unwrap();
        let kv = KvTensor::new(format, 2, n + 5, 16, &Device::Cpu).unwrap();
        kv.write(rows, 0).unwrap();
        kv
    }

    #[test]
    fn three_segments_at_once_are_the_sum_of_three_attentions() {
        let (n, text, image, audio) = (5, 12, 200, 31);
        let draws = Draws::default();
        let (rotated, plain) = (random(&draws, n, 64), random(&draws, n, 64));
        let causal = Visible::Causal { first: text - n, window: Some(6) };
        let formats = [KvFormat::Dense(DType::F32), KvFormat::Q8, KvFormat::Q4];
        for (format, cap) in formats.into_iter().flat_map(|format| [(format, SCORING.cap), (format, None)]) {
            let scoring = Scoring { cap, ..SCORING };
            let caches: Vec<(KvTensor, KvTensor)> =
                [(text, KvFormat::Dense(DType::F32)), (image, format), (audio, format)]
                    .iter()
                    .map(|&(len, f)| (filled(f, &random(&draws, len, 32)), filled(f, &random(&draws, len, 32))))
                    .collect();
            let lens = [text, image, audio];
            let segments: Vec<Segment<'_>> = caches
                .iter()
                .zip(lens)
                .enumerate()
                .map(|(i, ((keys, values), len))| {
                    let visible = if i == 0 { causal } else { Visible::All };
                    Segment { keys, values, len, visible }
                })
                .collect();
            let got = attend_segments(Queries { rotated: &rotated, plain: &plain }, &segments, scoring).unwrap();
            let heads = |x: &Tensor| x.reshape((n, 4, 16)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
            let mut expected = Tensor::zeros((4, n, 16), DType::F32, &Device::Cpu).unwrap();
            for (segment, q) in segments.iter().zip([&rotated, &plain, &plain]) {
                let (k, v) = (segment.keys.dequantize(0..segment.len), segment.values.dequantize(0..segment.len));
                let one = attend(&heads(q), &k.unwrap(), &v.unwrap(), scoring, segment.visible).unwrap();
                expected = (expected + one).unwrap();
            }
            let expected = expected.transpose(0, 1).unwrap().reshape((n, 64)).unwrap();
            assert!(worst(&got, &expected) < 1e-6, "{format:?}: {}", worst(&got, &expected));
            // Without a text segment the rotated queries are not read.
            let nothing = Tensor::zeros((n, 64), DType::F32, &Device::Cpu).unwrap();
            let media = attend_segments(Queries { rotated: &nothing, plain: &plain }, &segments[1..], scoring).unwrap();
            let again = attend_segments(Queries { rotated: &rotated, plain: &plain }, &segments[1..], scoring).unwrap();
            assert_eq!(worst(&media, &again), 0.0);
        }
    }

    #[test]
    fn shapes_that_do_not_match_are_refused() {
        let draws = Draws::default();
        let kv = filled(KvFormat::Q8, &random(&draws, 4, 32));
        let segment = Segment { keys: &kv, values: &kv, len: 4, visible: Visible::All };
        let q = |width: usize| random(&draws, 2, width);
        let ask = |width: usize, segments: &[Segment<'_>]| {
            attend_segments(Queries { rotated: &q(width), plain: &q(width) }, segments, SCORING)
        };
        assert!(ask(64, &[segment]).is_ok());
        assert!(ask(40, &[segment]).is_err() && ask(64, &[]).is_err() && ask(64, &[segment; 4]).is_err());
        assert!(ask(64, &[Segment { len: 10, ..segment }]).is_err());
    }
}
