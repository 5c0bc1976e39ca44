//! Compiles the kernels for NVIDIA GPUs, where the feature `cuda` asks for them.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ops/gpu/kernels");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let kernels = cudaforge::KernelBuilder::new()
        .source_dir("src/ops/gpu/kernels")
        .watch(headers()?)
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?;
    kernels.write(out.join("ptx.rs"))?;
    Ok(())
}

/// The headers of the kernels: when one changes, they are compiled again.
#[cfg(feature = "cuda")]
fn headers() -> std::io::Result<Vec<std::path::PathBuf>> {
    let files =
        std::fs::read_dir("src/ops/gpu/kernels")?.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(files.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "cuh")).collect())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
