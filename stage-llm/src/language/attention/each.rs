//! Attention of one token of each of several texts about one video, in one operation: the video's keys and values are read
//! once for all.

use candle_core::{Result, Tensor};

use super::segments::{added, check, merged};
use super::{Queries, Scoring, Segment};

/// Attention of row i of the queries to its own text `own[i]` and, with all other rows, to the segments `shared` (up to two,
/// of which every row sees every key): the sum of the softmaxes, `[n, heads * head_dim]` in the queries' type. A row's outcome
/// is what [`attend_segments`](super::segments::attend_segments) gives it alone, but for the order of sums: a product of more
/// rows adds up in another one.
///
/// # Errors
/// Errors of candle; shapes and types that do not match.
pub fn attend_each(
    queries: Queries<'_>,
    own: &[Segment<'_>],
    shared: &[Segment<'_>],
    scoring: Scoring,
) -> Result<Tensor> {
    let n = queries.plain.dim(0)?;
    if n != own.len() || shared.len() > 2 {
        candle_core::bail!(
            "attention refused: {n} queries of {} texts about {} kinds of media; a text has one query, and media are image \
             and audio",
            own.len(),
            shared.len()
        );
    }
    check(queries, own)?;
    check(queries, &[&own[..1], shared].concat())?;
    #[cfg(feature = "cuda")]
    if queries.plain.device().is_cuda() {
        return super::cuda::attend_each(queries, own, shared, scoring);
    }
    let of_one = |(i, text): (usize, &Segment<'_>)| {
        let (rotated, plain) = (queries.rotated.narrow(0, i, 1)?, queries.plain.narrow(0, i, 1)?);
        let one = Queries { rotated: &rotated, plain: &plain };
        added(None, one, std::slice::from_ref(text), scoring)
    };
    let texts: Vec<Tensor> =
        own.iter().enumerate().filter_map(|each| of_one(each).transpose()).collect::<Result<_>>()?;
    let mixed = Tensor::cat(&texts, 1)?; // [heads, n, head_dim]
    merged(added(Some(mixed), queries, shared, scoring)?, queries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::attention::Visible;
    use crate::language::attention::segments::attend_segments;
    use crate::language::kv::{KvFormat, KvTensor};
    use candle_core::{DType, Device};
    use compute::random::Draws;

    const SCORING: Scoring = Scoring { scale: 0.25, cap: Some(10.0) };

    fn filled(draws: &Draws, format: KvFormat, heads: usize, len: usize, width: usize) -> KvTensor {
        let kv = KvTensor::new(format, heads, len + 3, width, &Device::Cpu).unwrap();
        kv.write(&draws.normal((len, heads * width)).unwrap(), 0).unwrap();
        kv
    }

    /// Largest error that the order of sums explains: a score is the sum of up to 256 products, which rounds by about
    /// 16 x 16 x 2^-24, and its weight by as much of itself; outcomes are sums of three means of values of 1 or so.
    const ORDER: f32 = 1e-5;

    #[test]
    fn a_row_among_others_is_the_row_alone_but_for_the_order_of_sums() {
        let draws = Draws::default();
        let f32 = KvFormat::Dense(DType::F32);
        for (format, heads, kv_heads, width) in
            [(f32, 4, 2, 16), (KvFormat::Q8, 4, 2, 64), (KvFormat::Q4, 16, 8, 256), (f32, 4, 1, 40), (f32, 2, 2, 32)]
        {
            let filled = |format, len| filled(&draws, format, kv_heads, len, width);
            let media = [(filled(format, 2_500), filled(format, 2_500)), (filled(format, 77), filled(format, 77))];
            let shared: Vec<Segment<'_>> = media
                .iter()
                .map(|(keys, values)| Segment { keys, values, len: keys.capacity() - 3, visible: Visible::All })
                .collect();
            let lens = [40, 1, 13, 200, 7, 40, 90, 3];
            let texts: Vec<(KvTensor, KvTensor)> =
                lens.iter().map(|&len| (filled(f32, len), filled(f32, len))).collect();
            let own: Vec<Segment<'_>> = texts
                .iter()
                .zip(lens)
                .map(|((keys, values), len)| {
                    let visible = Visible::Causal { first: len - 1, window: Some(60) };
                    Segment { keys, values, len, visible }
                })
                .collect();
            let rotated = draws.normal((lens.len(), heads * width)).unwrap();
            let plain = draws.normal((lens.len(), heads * width)).unwrap();
            for several in [8, 3, 2, 1] {
                let rows = |x: &Tensor| x.narrow(0, 0, several).unwrap();
                let queries = Queries { rotated: &rows(&rotated), plain: &rows(&plain) };
                let together: Vec<Vec<f32>> =
                    attend_each(queries, &own[..several], &shared, SCORING).unwrap().to_vec2().unwrap();
                for (i, row) in together.iter().enumerate() {
                    let one = |x: &Tensor| x.narrow(0, i, 1).unwrap();
                    let queries = Queries { rotated: &one(&rotated), plain: &one(&plain) };
                    let segments = [&own[i..=i], &shared[..]].concat();
                    let alone = attend_segments(queries, &segments, SCORING).unwrap();
                    let alone = &alone.to_vec2::<f32>().unwrap()[0];
                    let error = row.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(error < ORDER, "{format:?} row {i} of {several}: {error}");
                }
            }
            let queries = Queries { rotated: &rotated, plain: &plain };
            assert!(attend_each(queries, &own[..7], &shared, SCORING).is_err());
            assert!(attend_each(queries, &own, &[shared[0]; 3], SCORING).is_err());
        }
    }
}
