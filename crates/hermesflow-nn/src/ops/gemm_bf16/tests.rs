#![allow(clippy::unwrap_used)]
use super::super::testing::normal;
use super::*;

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
        let turn = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
        };
        let (a_t, b_t) = (turn(&a, m, k), turn(&b, k, n));
        let (brain_a, brain_b) = (super::super::dot::narrow(&a), super::super::dot::narrow(&b));
        let mut expected = bias.repeat(m);
        // SAFETY: expected is [m, n].
        unsafe { plain(expected.as_mut_ptr(), Matrix::wide(&a, k), Matrix::wide(&b, n)) };
        let lefts = [Matrix::wide(&a, k), Matrix::wide(&a_t, m).t(), Matrix::new(Values::Brain(&brain_a), k)];
        let rights = [Matrix::wide(&b, n), Matrix::wide(&b_t, k).t(), Matrix::new(Values::Brain(&brain_b), n)];
        let first = multiply(lefts[0], rights[0], Some(&bias));
        near(&first, &expected, &format!("{m} {n} {k}"));
        for (left, right) in lefts.iter().flat_map(|left| rights.iter().map(move |right| (*left, *right))) {
            assert_eq!(multiply(left, right, Some(&bias)), first, "however they lie: {m} {n} {k}");
            let mut sum = bias.repeat(m);
            add(&mut sum, left, right);
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
        pool.install(|| multiply(Matrix::wide(&a[..rows * k], k), Matrix::wide(&b, k).t(), None))
    };
    let all = run(1, m);
    assert_eq!(all, run(5, m));
    if crate::ops::multiplies_bf16() {
        assert_eq!(all[..31 * n], run(3, 31));
    }
}
