//! Writes the GPU kernels as PTX, one file a kernel, for `scripts/gpu/ptxas.py`:
//! `ptx FOLDER ARCHITECTURE…`, for example `ptx /tmp/ptx 80 90`.
//!
//! The first line of each file is a comment with the kernel's name, the threads of its blocks and
//! the shared memory of a block in bytes.

use std::path::PathBuf;
use std::{env, fs};

use favonius_kernels::ptx::all_kernels;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("the first argument is a folder")?);
    fs::create_dir_all(&folder)?;
    for architecture in arguments {
        let kernels = all_kernels(architecture.parse()?);
        for (index, kernel) in kernels.iter().enumerate() {
            let file = folder.join(format!("sm_{architecture}_{index:02}.ptx"));
            let heading =
                format!("// {} | {} | {}\n", kernel.name, kernel.threads, kernel.shared_memory);
            fs::write(file, heading + &kernel.text)?;
        }
        println!("{} kernels for sm_{architecture}", kernels.len());
    }
    Ok(())
}
