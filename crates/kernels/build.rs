//! Exports a function of the test programs and of the examples to the code that CubeCL compiles at
//! run time; see `src/cube/bfloat16.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_set = |variable: &str| std::env::var_os(variable).is_some();
    let on_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if is_set("CARGO_FEATURE_CUBE_CPU") && on_linux {
        for programs in ["tests", "examples"] {
            for option in ["-u,__truncsfbf2", "--export-dynamic-symbol=__truncsfbf2"] {
                println!("cargo::rustc-link-arg-{programs}=-Wl,{option}");
            }
        }
    }
}
