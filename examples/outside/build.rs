//! Where the program finds libtorch when it runs; and libtorch before OpenBLAS, which would otherwise serve its products.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cpu,--pop-state");
    for name in ["DEP_HEADSCOPE_LIBTORCH", "DEP_HEADSCOPE_LIBTCH"] {
        println!("cargo:rerun-if-env-changed={name}");
        if let Ok(folder) = env::var(name) {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
