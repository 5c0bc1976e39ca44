//! Weights that stay in their file, under the allocator that allows it.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use hermesflow_nn::weights::{FileBacked, Weights};

#[global_allocator]
static ALLOCATOR: FileBacked<System> = FileBacked(System);

/// So many files can be mapped at a time that one test must not take another's.
static ALONE: Mutex<()> = Mutex::new(());
const ROWS: usize = 300;
const COLUMNS: usize = 200;

fn value(row: usize, column: usize) -> f32 {
    (row * COLUMNS + column) as f32 / 7.0
}

fn write(path: &Path, dtype: DType) {
    let values: Vec<f32> = (0..ROWS).flat_map(|row| (0..COLUMNS).map(move |column| value(row, column))).collect();
    let matrix = Tensor::from_vec(values, (ROWS, COLUMNS), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    let small = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
    let named = [("a", small), ("b", matrix.clone()), ("c", matrix)];
    candle_core::safetensors::save(&named.into_iter().collect(), path).unwrap();
}

fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr() as usize,
        Storage::Cpu(CpuStorage::BF16(values)) => values.as_ptr() as usize,
        _ => panic!("another storage"),
    }
}

/// Whether this process has a file mapped, at this address if one is given.
#[cfg(target_os = "linux")]
fn mapped(file: &Path, at: Option<usize>) -> bool {
    let file = file.canonicalize().unwrap();
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| usize::from_str_radix(number, 16).unwrap());
        line.ends_with(file.to_str().unwrap()) && at.is_none_or(|at| (from..to).contains(&at))
    })
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_is_mapped_until_its_last_tensor_is_gone() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let path = folder.path().join(format!("{dtype:?}.safetensors"));
        write(&path, dtype);
        let weights = Weights::load(&path, dtype, &Device::Cpu).unwrap();
        let (b, c) = (weights.get("b", &[ROWS, COLUMNS]).unwrap(), weights.get("c", &[ROWS, COLUMNS]).unwrap());
        assert!(mapped(&path, Some(address(&b))) && mapped(&path, Some(address(&c))));
        assert!(!mapped(&path, Some(address(&weights.get("a", &[3]).unwrap()))), "small ones are copied");
        drop((weights, b));
        assert!(mapped(&path, Some(address(&c))));
        let row = c.get(123).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let wanted = Tensor::full(value(123, 45), 1, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        assert_eq!(row[45], wanted.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()[0]);
        drop(c);
        assert!(!mapped(&path, None));
        // In another type the values are copied.
        drop(Weights::load(&path, DType::F16, &Device::Cpu).unwrap());
        assert!(!mapped(&path, None));
    }
}

#[test]
fn what_is_trained_is_a_copy_and_the_file_stays() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, DType::F32);
    let before = std::fs::read(&path).unwrap();
    let frozen = Weights::load(&path, DType::F32, &Device::Cpu).unwrap();
    let trained = frozen.trainable().unwrap();
    for (_, variable) in trained.variables() {
        variable.set(&variable.zeros_like().unwrap()).unwrap();
    }
    let first =
        |weights: &Weights| weights.get("b", &[ROWS, COLUMNS]).unwrap().get(1).unwrap().to_vec1::<f32>().unwrap()[0];
    assert_eq!((first(&frozen), first(&trained)), (value(1, 0), 0.0));
    // A Vec taken out of a tensor may grow, and be written to.
    let b = frozen.get("b", &[ROWS, COLUMNS]).unwrap();
    drop(frozen);
    let (storage, _) = b.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { panic!("another storage") };
    let mut values = values.clone();
    values.push(1.0);
    assert_eq!(values[COLUMNS], value(1, 0));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// A new file under the name of a mapped one, as a checkpoint is replaced, and the old one removed.
#[test]
fn a_replaced_file_leaves_what_was_loaded_alone() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let (path, next) = (folder.path().join("model.safetensors"), folder.path().join("next.safetensors"));
    write(&path, DType::F32);
    let weights = Weights::load(&path, DType::F32, &Device::Cpu).unwrap();
    std::fs::write(&next, b"another").unwrap();
    std::fs::rename(&next, &path).unwrap();
    let b = weights.get("b", &[ROWS, COLUMNS]).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(b[ROWS - 1][COLUMNS - 1], value(ROWS - 1, COLUMNS - 1));
}

#[test]
fn many_files_and_threads() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..8).map(|number| folder.path().join(format!("{number}.safetensors"))).collect();
    paths.iter().for_each(|path| write(path, DType::F32));
    // More than can be mapped at a time: the rest is copied.
    let all: Vec<Weights> =
        (0..100).map(|number| Weights::load(&paths[number % 8], DType::F32, &Device::Cpu).unwrap()).collect();
    std::thread::scope(|scope| {
        for mut part in all.chunks(25).map(<[Weights]>::to_vec) {
            let paths = &paths;
            scope.spawn(move || {
                for round in 0..50 {
                    part.pop();
                    part.insert(0, Weights::load(&paths[round % 8], DType::F32, &Device::Cpu).unwrap());
                    for weights in part.iter().step_by(7) {
                        let b = weights.get("b", &[ROWS, COLUMNS]).unwrap().get(round).unwrap();
                        assert_eq!(b.to_vec1::<f32>().unwrap()[3], value(round, 3));
                    }
                }
            });
        }
    });
}
