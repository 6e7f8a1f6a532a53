//! Products against sums in f64, on every instruction set that this machine has.

use burn::tensor::bf16;

use super::pack::{Lane, Lines};
use super::*;
use crate::oracle::{Random, on_threads};

fn draw(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.unit()).collect()
}

/// The nearest numbers that bf16 has.
fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [2, 3, 4],
    [17, 5, 9],
    [1, 40, 33],
    [40, 1, 33],
    [3, 70, 65],
    [5, 70, 64],
    [16, 33, 48],
    [31, 64, 50],
    [33, 31, 7],
    [70, 65, 200],
    [130, 100, 3],
    [40, 48, 2100],
    [20, 40, 8200],
];

/// Each element, and the sum of the magnitudes it is made of: what rounding is relative to.
fn exact(
    lhs: &dyn Fn(usize, usize) -> f32,
    rhs: &dyn Fn(usize, usize) -> f32,
    [m, n, k]: [usize; 3],
) -> Vec<(f64, f64)> {
    (0..m * n)
        .map(|at| {
            let terms = (0..k).map(|l| f64::from(lhs(at / n, l)) * f64::from(rhs(l, at % n)));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        })
        .collect()
}

/// A product's operands in both formats and every orientation.
fn views<'a>(values: &'a [f32], narrow: &'a [bf16], rows: usize, columns: usize) -> [Matrix<'a>; 4] {
    [
        Matrix::dense(values, rows, columns),
        Matrix::dense(values, columns, rows).transposed(),
        Matrix::first_of(Elements::Bf16(narrow), rows, columns),
        Matrix::first_of(Elements::Bf16(narrow), columns, rows).transposed(),
    ]
}

fn element(matrix: &Matrix, row: usize, column: usize) -> f32 {
    let at = row * matrix.row_stride + column * matrix.column_stride;
    match matrix.elements {
        Elements::F32(values) => values[at],
        Elements::Bf16(values) => values[at].to_f32(),
        blocks @ Elements::Blocks(..) => blocks.wide(at, &mut [0.0])[0],
    }
}

#[test]
fn every_orientation_and_format_agrees_with_f64() {
    let mut random = Random::new(1);
    for size @ [m, n, k] in SIZES {
        let (a, b, start) = (draw(&mut random, m * k), draw(&mut random, k * n), draw(&mut random, m * n));
        let (a_narrow, b_narrow) = (narrow(&a), narrow(&b));
        for lhs in views(&a, &a_narrow, m, k) {
            for rhs in views(&b, &b_narrow, k, n) {
                let mixed = Precision::of(&[lhs, rhs]) == Precision::Bf16;
                // Where bf16 is multiplied with an f32 operand, that is rounded: by 2⁻⁹ of each factor at most.
                let rounded = mixed && (lhs.precision() == Precision::F32 || rhs.precision() == Precision::F32);
                let bound = if rounded { 1.0 / 512.0 } else { 1e-6 };
                let expected = exact(&|i, l| element(&lhs, i, l), &|l, j| element(&rhs, l, j), size);
                let mut out = start.clone();
                product(&mut out, lhs, rhs, 0.5, true, Threads::Caller);
                let new: Vec<f32> = new_product(lhs, rhs, 0.5, Threads::Pool);
                let across: Vec<f32> = new_transposed_product(lhs, rhs, 0.5, Threads::Caller);
                for (at, (value, size)) in expected.iter().enumerate() {
                    let close =
                        |actual: f32, expected: f64| (f64::from(actual) - expected).abs() <= bound * size + 1e-6;
                    assert!(
                        close(out[at], f64::from(start[at]) + 0.5 * value),
                        "{m}x{n}x{k}, {lhs:?}, {rhs:?} at {at}"
                    );
                    assert!(close(new[at], 0.5 * value), "new {m}x{n}x{k} at {at}");
                    assert!(close(across[at % n * m + at / n], 0.5 * value), "transposed {m}x{n}x{k} at {at}");
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_agrees_with_f64() {
    let mut random = Random::new(2);
    let size @ [m, n, k] = [45, 71, 130];
    let (a, b) = (draw(&mut random, m * k), draw(&mut random, k * n));
    let (a_narrow, b_narrow) = (narrow(&a), narrow(&b));
    for (precision, views) in [
        (Precision::F32, [views(&a, &a_narrow, m, k)[0], views(&b, &b_narrow, k, n)[1]]),
        (Precision::Bf16, [views(&a, &a_narrow, m, k)[2], views(&b, &b_narrow, k, n)[3]]),
    ] {
        let [lhs, rhs] = views;
        let expected = exact(&|i, l| element(&lhs, i, l), &|l, j| element(&rhs, l, j), size);
        for kernels in tile::available(precision) {
            let mut out = vec![f32::NAN; m * n];
            let left = Left::pack_in(lhs, 1.0, precision, kernels.rows, Threads::Caller);
            let terms = [(Rows::Packed(&left), rhs)];
            let (target, finish) = (Target::new(f32::place(out.as_mut_ptr()), n, 1), Finish::default());
            let height = left.height;
            Job { out: target, terms: &terms, finish, rows: m, columns: n, height, kernels, precision }
                .run(Threads::Caller);
            for (at, (value, size)) in expected.iter().enumerate() {
                assert!(
                    (f64::from(out[at]) - value).abs() <= 1e-6 * size,
                    "{precision:?}, {} rows, at {at}",
                    kernels.rows
                );
            }
        }
    }
}

/// Whatever the instruction set packs with, a panel holds each element at its place and zeros beside them.
#[test]
fn panels_hold_every_element_at_its_place() {
    let mut random = Random::new(5);
    let bits = |value: f32| value.to_bits();
    for [count, inner, width] in
        [[1, 1, 1], [3, 2, 4], [14, 33, 14], [16, 16, 16], [17, 47, 32], [31, 1, 32], [5, 64, 16]]
    {
        let values = draw(&mut random, count * inner);
        let narrow = narrow(&values);
        for matrix in views(&values, &narrow, count, inner) {
            let at = |line: usize, step: usize| {
                if line < count && step < inner { element(&matrix, line, step) } else { 0.0 }
            };
            let half = |line, step| u32::from(bf16::from_f32(at(line, step)).to_bits());
            for precision in [Precision::F32, Precision::Bf16] {
                let mut panel = vec![Lane::new(7); precision.steps(inner) * width];
                Lines::rows(matrix).pack(&mut panel, width, precision);
                for (index, lane) in panel.into_iter().enumerate() {
                    let (step, line) = (index / width, index % width);
                    let expected = match precision {
                        Precision::F32 => bits(at(line, step)),
                        Precision::Bf16 => half(line, 2 * step) | half(line, 2 * step + 1) << 16,
                    };
                    // SAFETY: packing writes the whole panel.
                    assert_eq!(unsafe { lane.assume_init() }, expected, "{matrix:?}, {precision:?}, lane {index}");
                }
            }
        }
    }
}

#[test]
fn terms_and_bias_are_summed_and_rounded_once() {
    let mut random = Random::new(3);
    let (m, n, k, r) = (37, 50, 66, 5);
    let (x, w, low, b) =
        (draw(&mut random, m * k), draw(&mut random, n * k), draw(&mut random, m * r), draw(&mut random, n * r));
    let bias = draw(&mut random, n);
    let [x_MK, low_MR] = [Matrix::dense(&x, m, k), Matrix::dense(&low, m, r)];
    let (w_NK, b_NR) = (Matrix::dense(&w, n, k), Matrix::dense(&b, n, r));
    let base = Left::pack(x_MK, 1.0, Precision::F32, Threads::Caller);
    let update = Left::pack(low_MR, 3.0, Precision::F32, Threads::Pool);
    let terms = [Term { left: &base, right: w_NK.transposed() }, Term { left: &update, right: b_NR.transposed() }];
    let wide: Vec<f32> = new_sum_of_products(&terms, Some(Elements::F32(&bias)), 1.0, Threads::Pool);
    let rounded: Vec<bf16> = new_sum_of_products(&terms, Some(Elements::F32(&bias)), 1.0, Threads::Pool);
    let first = exact(&|i, l| x[i * k + l], &|l, j| w[j * k + l], [m, n, k]);
    let second = exact(&|i, l| low[i * r + l], &|l, j| b[j * r + l], [m, n, r]);
    for at in 0..m * n {
        let expected = first[at].0 + 3.0 * second[at].0 + f64::from(bias[at % n]);
        assert!((f64::from(wide[at]) - expected).abs() < 1e-4, "{at}: {} for {expected}", wide[at]);
        assert_eq!(rounded[at], bf16::from_f32(wide[at]), "{at}");
    }
}

#[test]
fn sharing_a_product_changes_no_bit() {
    let mut random = Random::new(4);
    for [m, n, k] in [[1, 1003, 700], [20, 600, 300], [200, 170, 500], [300, 16, 700], [40, 64, 9000]] {
        let (a, b) = (draw(&mut random, m * k), draw(&mut random, k * n));
        let (a_narrow, b_narrow) = (narrow(&a), narrow(&b));
        for (lhs, rhs) in views(&a, &a_narrow, m, k).into_iter().zip(views(&b, &b_narrow, k, n)) {
            let run = |threads| on_threads(threads, || new_product::<f32>(lhs, rhs, 1.0, Threads::Pool));
            let alone: Vec<f32> = new_product(lhs, rhs, 1.0, Threads::Caller);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(bits(&run(1)) == bits(&run(3)) && bits(&run(3)) == bits(&alone), "{m}x{n}x{k}");
        }
    }
}

#[test]
fn an_empty_inner_dimension_gives_zeros() {
    let (lhs, rhs) = (Matrix::dense(&[], 3, 0), Matrix::dense(&[], 0, 4));
    assert_eq!(new_product::<f32>(lhs, rhs, 1.0, Threads::Pool), [0.0; 12]);
    let mut out = [1.0; 12];
    product(&mut out, lhs, rhs, 1.0, true, Threads::Pool);
    assert_eq!(out, [1.0; 12]);
    assert!(
        new_product::<f32>(Matrix::dense(&[], 0, 2), Matrix::dense(&[1.0; 4], 2, 2), 1.0, Threads::Pool).is_empty()
    );
}

#[test]
fn what_is_no_number_stays_so() {
    let (a, b) = ([f32::NAN, 1.0, f32::INFINITY, 1.0], [bf16::ONE; 4]);
    let b = Matrix::first_of(Elements::Bf16(&b), 2, 2);
    let out: Vec<f32> = new_product(Matrix::dense(&a, 2, 2), b, 1.0, Threads::Caller);
    assert!(out[0].is_nan() && out[1].is_nan() && out[2].is_infinite() && out[3].is_infinite(), "{out:?}");
}
