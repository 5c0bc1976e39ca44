#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::normal;

fn numbers(shape: &[usize]) -> Vec<f32> {
    normal(shape).flatten_all().unwrap().to_vec1().unwrap()
}

fn near(ours: &[f32], plain: &[f32], what: &str) {
    assert_eq!(ours.len(), plain.len());
    for (at, (a, b)) in ours.iter().zip(plain).enumerate() {
        assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{what}: element {at} is {a}, plainly {b}");
    }
}

/// Sizes with whole and broken tiles, and more of each dimension than is taken at a time.
const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (12, 32, 64), (13, 33, 65), (5, 70, 31), (300, 97, 1), (40, 129, 3333), (3000, 1500, 24)];

#[test]
fn agrees_with_the_plain_product_of_rounded_elements() {
    for (m, n, k) in SIZES {
        let (a, b, bias) = (numbers(&[m, k]), numbers(&[k, n]), numbers(&[n]));
        let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
        };
        let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
        let (bf16_a, bf16_b) = (crate::matmul::unpacked::rounded(&a), crate::matmul::unpacked::rounded(&b));
        let mut expected = bias.repeat(m);
        // SAFETY: expected is [m, n].
        unsafe { add_rounded(expected.as_mut_ptr(), Matrix::f32(&a, k), Matrix::f32(&b, n)) };
        let lefts = [Matrix::f32(&a, k), Matrix::f32(&a_t, m).t(), Matrix::new(Values::Bf16(&bf16_a), k)];
        let rights = [Matrix::f32(&b, n), Matrix::f32(&b_t, k).t(), Matrix::new(Values::Bf16(&bf16_b), n)];
        let by = |left, right| multiply(Engine::Vectors, left, right, Some(&bias), After::Nothing);
        let first = by(lefts[0], rights[0]);
        near(&first, &expected, &format!("{m} {n} {k}"));
        for (left, right) in lefts.iter().flat_map(|left| rights.iter().map(move |right| (*left, *right))) {
            assert_eq!(by(left, right), first, "however they lie: {m} {n} {k}");
            let mut sum = bias.repeat(m);
            add(Engine::Vectors, &mut sum, left, right);
            near(&sum, &expected, "added");
        }
    }
}

#[test]
fn neither_threads_nor_other_rows_change_a_result() {
    let (m, n, k) = (700, 200, 1700);
    let (a, b) = (numbers(&[m, k]), numbers(&[n, k]));
    let run = |threads: usize, rows: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (lhs, rhs) = (Matrix::f32(&a[..rows * k], k), Matrix::f32(&b, k).t());
        pool.install(|| multiply(Engine::Vectors, lhs, rhs, None, After::Nothing))
    };
    let all = run(1, m);
    assert_eq!(all, run(5, m));
    if crate::simd::bf16() {
        assert_eq!(all[..31 * n], run(3, 31));
    }
}

#[test]
fn numbers_in_f32_are_multiplied_as_they_are() {
    for (m, n, k) in [(768, 768, 768), (771, 801, 1000), (1500, 770, 777)] {
        let (a, b, start) = (numbers(&[m, k]), numbers(&[k, n]), numbers(&[m, n]));
        let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
        };
        let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
        let mut expected = start.clone();
        for (row, y) in expected.chunks_exact_mut(n).enumerate() {
            for (x, line) in a[row * k..][..k].iter().zip(b.chunks_exact(n)) {
                y.iter_mut().zip(line).for_each(|(y, b)| *y += x * b);
            }
        }
        for lhs in [Operand::rows(a.as_ptr(), k), Operand::rows(a_t.as_ptr(), m).t()] {
            for rhs in [Operand::rows(b.as_ptr(), n), Operand::rows(b_t.as_ptr(), k).t()] {
                let mut out = start.clone();
                // SAFETY: the operands and out are [m, k], [k, n] and [m, n].
                let done = unsafe { multiply_f32((m, n, k), out.as_mut_ptr(), true, lhs, rhs) };
                assert_eq!(done, crate::simd::bf16());
                if done {
                    near(&out, &expected, &format!("{m} {n} {k}"));
                }
            }
        }
        let mut out = start.clone();
        let (lhs, rhs) = (Operand::rows(a.as_ptr(), k + 1), Operand::rows(b.as_ptr(), n));
        // SAFETY: nothing is read of an operand whose rows lie apart.
        assert!(!unsafe { multiply_f32((m, n, k), out.as_mut_ptr(), true, lhs, rhs) });
        assert_eq!(out, start);
    }
}

#[test]
fn what_follows_a_product_is_the_same_by_every_engine() {
    let (m, n, k) = (45, 70, 90);
    let (a, b, bias, more) = (numbers(&[m, k]), numbers(&[k, n]), numbers(&[n]), numbers(&[m, n]));
    let negated: fn(&mut [f32], &[f32]) = |y, x| y.iter_mut().zip(x).for_each(|(y, x)| *y = -x);
    for engine in [Engine::Amx, Engine::Tiles, Engine::Vectors, Engine::Rounded] {
        let by = |after| multiply(engine, Matrix::f32(&a, k), Matrix::f32(&b, n), Some(&bias), after);
        let bare = by(After::Nothing);
        assert!(by(After::Map(negated)).iter().zip(&bare).all(|(ours, bare)| *ours == -bare), "{engine:?}");
        let sums = by(After::Add(&more));
        assert!(sums.iter().zip(&bare).zip(&more).all(|((sum, bare), more)| *sum == bare + more), "{engine:?}");
        assert!(multiply(engine, Matrix::f32(&[], k), Matrix::f32(&b, n), None, After::Nothing).is_empty());
    }
}
