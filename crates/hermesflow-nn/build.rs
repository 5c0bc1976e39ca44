//! Compiles the kernels for NVIDIA GPUs, where the feature `cuda` asks for them.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ops/gpu/kernels");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let kernels = cudaforge::KernelBuilder::new()
        .source_dir("src/ops/gpu/kernels")
        .watch(["src/ops/gpu/kernels/tensor_core.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?;
    kernels.write(out.join("ptx.rs"))?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
