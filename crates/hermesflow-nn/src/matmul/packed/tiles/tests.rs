#![allow(clippy::unwrap_used)]
use half::bf16;

use super::super::matrix::Values;
use super::*;
use crate::testing::normal;

fn numbers(shape: &[usize]) -> Vec<f32> {
    normal(shape).flatten_all().unwrap().to_vec1().unwrap()
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
}

/// `start + lhs rhs` by a unit.
fn product<U: TileUnit>(unit: U, lhs: Matrix<'_>, rhs: Matrix<'_>, start: Start<'_>, after: After<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; lhs.rows * rhs.columns];
    // SAFETY: out is [m, n]; the unit is software, or in the CPU.
    unsafe { run_on(unit, out.as_mut_ptr(), lhs, rhs, start, after) };
    out
}

fn plain(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let round = |x: f32| f64::from(bf16::from_f32(x).to_f32());
    let mut out = vec![0f64; m * n];
    for row in 0..m {
        for at in 0..k {
            let x = round(a[row * k + at]);
            (0..n).for_each(|column| out[row * n + column] += x * round(b[at * n + column]));
        }
    }
    out
}

fn near(ours: &[f32], plain: &[f64], what: &str) {
    assert_eq!(ours.len(), plain.len());
    for (at, (a, b)) in ours.iter().zip(plain).enumerate() {
        assert!((f64::from(*a) - b).abs() <= 1e-4 * (1.0 + b.abs()), "{what}: element {at} is {a}, plainly {b}");
    }
}

/// Sizes with whole and broken tiles, blocks of one and of two left tiles, several passes over the summed dimension, and several
/// parts of it.
const SIZES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (32, 32, 32),
    (33, 17, 31),
    (49, 65, 70),
    (16, 130, 513),
    (5, 300, 1100),
    (3, 4, PART + 37),
    (ROWS + 3, 7, 40),
];

#[test]
fn agrees_with_the_plain_product_of_rounded_elements() {
    for size @ (m, n, k) in SIZES {
        let (a, b, bias) = (numbers(&[m, k]), numbers(&[k, n]), numbers(&[n]));
        let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
        let (half_a, half_b) = (crate::matmul::unpacked::rounded(&a), crate::matmul::unpacked::rounded(&b));
        let half_bt = crate::matmul::unpacked::rounded(&b_t);
        let bare = plain(&a, &b, size);
        let expected: Vec<f64> = bare.iter().enumerate().map(|(at, y)| y + f64::from(bias[at % n])).collect();
        let lefts = [Matrix::f32(&a, k), Matrix::f32(&a_t, m).t(), Matrix::new(Values::Bf16(&half_a), k)];
        let rights = [
            Matrix::f32(&b, n),
            Matrix::f32(&b_t, k).t(),
            Matrix::new(Values::Bf16(&half_b), n),
            Matrix::new(Values::Bf16(&half_bt), k).t(),
        ];
        let first = product(Software, lefts[0], rights[0], Start::Bias(&bias), After::Nothing);
        near(&first, &expected, &format!("{size:?}"));
        near(&product(Software, lefts[0], rights[0], Start::Zero, After::Nothing), &bare, "without a bias");
        for (left, right) in lefts.iter().flat_map(|left| rights.iter().map(move |right| (*left, *right))) {
            let again = product(Software, left, right, Start::Bias(&bias), After::Nothing);
            assert_eq!(again, first, "however they lie: {size:?}");
        }
        let mut kept = numbers(&[m, n]);
        let added: Vec<f64> = bare.iter().zip(&kept).map(|(y, x)| y + f64::from(*x)).collect();
        // SAFETY: kept is [m, n].
        unsafe { run_on(Software, kept.as_mut_ptr(), lefts[0], rights[0], Start::Kept, After::Nothing) };
        near(&kept, &added, "added");
    }
}

#[test]
fn what_follows_gives_the_bits_of_a_pass_of_its_own() {
    fn half(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * 0.5 - 1.0);
    }
    for (m, n, k) in SIZES {
        let (a, b, bias, more) = (numbers(&[m, k]), numbers(&[k, n]), numbers(&[n]), numbers(&[m, n]));
        let (lhs, rhs, start) = (Matrix::f32(&a, k), Matrix::f32(&b, n), Start::Bias(&bias));
        let bare = product(Software, lhs, rhs, start, After::Nothing);
        let mut mapped = bare.clone();
        half(&mut mapped, &bare);
        assert_eq!(product(Software, lhs, rhs, start, After::Map(half)), mapped);
        let sums: Vec<f32> = bare.iter().zip(&more).map(|(y, x)| x + y).collect();
        assert_eq!(product(Software, lhs, rhs, start, After::Add(&more)), sums);
    }
}

#[test]
fn neither_threads_nor_other_rows_nor_other_columns_change_a_result() {
    let (m, n, k) = (150, 140, 1700);
    let (a, b) = (numbers(&[m, k]), numbers(&[n, k]));
    let run = |threads: usize, rows: usize, columns: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (lhs, rhs) = (Matrix::f32(&a[..rows * k], k), Matrix::f32(&b[..columns * k], k).t());
        pool.install(|| product(Software, lhs, rhs, Start::Zero, After::Nothing))
    };
    let all = run(1, m, n);
    assert_eq!(all, run(5, m, n));
    for rows in [1, 16, 17, 31] {
        assert_eq!(all[..rows * n], run(3, rows, n));
    }
    for (few, row) in run(2, m, 33).chunks_exact(33).zip(all.chunks_exact(n)) {
        assert_eq!(few, &row[..33]);
    }
}

/// Packing with AVX-512 and packing element by element give the same tiles, also where lines and elements are missing.
#[test]
fn packing_is_the_same_with_and_without_vectors() {
    if !crate::simd::bf16() {
        println!("skipped: this CPU has no AVX512-BF16, or HERMESFLOW_CPU forbids it");
        return;
    }
    let (lines, depth) = (37, 150);
    let values = numbers(&[lines, depth]);
    let (flipped, halves) = (transpose(&values, lines, depth), crate::matmul::unpacked::rounded(&values));
    for matrix in
        [Matrix::f32(&values, depth), Matrix::f32(&flipped, lines).t(), Matrix::new(Values::Bf16(&halves), depth)]
    {
        for (first, part) in [(0, 0..150), (16, 32..97), (32, 0..32), (37, 0..64), (32, 64..65)] {
            let few = LINES.min(lines - first);
            for side in [Side::Left, Side::Right] {
                let tiles = part.len().div_ceil(DEPTH);
                let [mut ours, mut plain] = [vec![7u32; tiles * WORDS], vec![9; tiles * WORDS]];
                // SAFETY: both have room for the tiles, and the matrix has the lines and the part.
                unsafe {
                    fill(ours.as_mut_ptr(), side, matrix, first, few, part.clone());
                    fill::plainly(plain.as_mut_ptr(), side, matrix, first, few, part.clone());
                }
                assert_eq!(ours, plain, "{first} {part:?}");
            }
        }
    }
}

/// The tile registers themselves, where the CPU has them.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_tile_registers_do_as_the_software_does() {
    if !in_hardware() {
        println!("skipped: this CPU has no AMX with bf16, or the system does not allow it");
        return;
    }
    let mut differing = 0;
    for size @ (m, n, k) in SIZES {
        // Sums of small integers are exact in any order.
        let whole = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| (x * 3.0).round()).collect() };
        let (a, b) = (whole(numbers(&[m, k])), whole(numbers(&[k, n])));
        let (lhs, rhs) = (Matrix::f32(&a, k), Matrix::f32(&b, n));
        let ours = product(amx::Amx, lhs, rhs, Start::Zero, After::Nothing);
        assert_eq!(ours, product(Software, lhs, rhs, Start::Zero, After::Nothing), "integers, {size:?}");
        let (a, b) = (numbers(&[m, k]), numbers(&[k, n]));
        let (lhs, rhs) = (Matrix::f32(&a, k), Matrix::f32(&b, n));
        let ours = product(amx::Amx, lhs, rhs, Start::Zero, After::Nothing);
        near(&ours, &plain(&a, &b, size), "AMX");
        let software = product(Software, lhs, rhs, Start::Zero, After::Nothing);
        differing += ours.iter().zip(&software).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    }
    println!("{differing} results of AMX and of the software differ in their bits");
}
