//! The recorded cases pass with their matrices in bf16 by every kernel of this machine, each forced in turn.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use hermesflow_nn::kernels::{self, Bf16Kernel, Choices};
use hermesflow_verify::{Check, Verdict, verify};

fn folders() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::iter::once(ours).chain(std::env::var_os("HERMESFLOW_GOLDEN").map(PathBuf::from)).collect()
}

#[test]
fn the_recorded_cases_pass_in_bf16_by_every_kernel() {
    if kernels::forced().is_some() {
        println!("HERMESFLOW_CPU names a kernel, and only that one is tried");
    }
    for kernel in Bf16Kernel::ALL {
        if !kernel.is_available() {
            println!("skipped: this machine has no kernel {kernel}");
            continue;
        }
        if kernels::forced().is_some_and(|forced| forced != kernel) {
            continue;
        }
        kernels::install(Some(Choices::all(kernel))).unwrap();
        assert_eq!(kernels::current(), Choices::all(kernel));
        for folder in folders() {
            let checks = verify(&folder, &Device::Cpu, DType::BF16, |_| {}).unwrap();
            let of = |verdict: Verdict| checks.iter().filter(|check| check.verdict == verdict).collect::<Vec<&Check>>();
            assert!(of(Verdict::Failed).is_empty(), "{kernel}: {:#?}", of(Verdict::Failed));
            println!("{kernel}: {} checks of {} passed", of(Verdict::Passed).len(), folder.display());
            assert!(!of(Verdict::Passed).is_empty());
        }
    }
}
