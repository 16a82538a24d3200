//! Links LAPACK after libtorch, leaves the place of libtorch in what is built, and makes the snippets of pages whole.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    // Both come from torch-sys: from its build script, or from `.cargo/local.toml`, which stands in for it.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTCH");
    let torch = env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_else(|_| "libtorch/lib".to_owned());
    let torch = Path::new(&torch).canonicalize().unwrap_or_else(|_| torch.clone().into());
    println!("cargo:rustc-link-search=native={}", torch.display());
    // libtorch carries MKL, whose BLAS symbols are global: whoever stands first in the link order serves both. With
    // OpenBLAS first, batched products inside libtorch run at a third of their speed. torch_cuda is never linked: the
    // library loads it at run time where there is one, so that one build serves CPU and GPU.
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=openblas");
    // Rust links with --as-needed, which drops a library whose symbols nothing calls directly: libtorch would then come
    // in behind OpenBLAS, as a dependency of the shim. Named again without it, it keeps its first place.
    println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cpu,--pop-state");
    // Binaries, tests and doctests find libtorch without LD_LIBRARY_PATH.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch.display());
    println!("cargo:libtorch={}", torch.display());
    if let Ok(libtch) = env::var("DEP_TCH_LIBTCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtch}");
        println!("cargo:libtch={libtch}");
    }
    snippets("from-transformer-lens.md")
}

/// Copies a page of `docs` to where rustdoc includes it, with hidden lines around its Rust snippets, so that each can be run:
/// first what the page's first snippet says, at the end a result. The page itself stays readable elsewhere.
fn snippets(name: &str) -> io::Result<()> {
    let source = Path::new("docs").join(name);
    println!("cargo:rerun-if-changed={}", source.display());
    let page = fs::read_to_string(&source)?;
    let (mut whole, mut setup, mut inside, mut begun) = (String::new(), String::new(), false, false);
    for line in page.lines() {
        if inside && line == "```" {
            whole.push_str("# Ok::<(), headscope::Error>(())\n");
            (inside, begun) = (false, true);
        } else if inside && !begun {
            setup.push_str(&format!("# {line}\n"));
        }
        whole.push_str(line);
        whole.push('\n');
        if line == "```rust" {
            inside = true;
            whole.push_str(&setup);
        }
    }
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new(&out).join(name), whole)
}
