//! Compiles a kernel to PTX without a GPU.

use std::ffi::CStr;
use std::sync::Arc;

use cubecl::Compiler;
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{DeviceIdentity, HardwareProperties, MemoryDeviceProperties, features::Features};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::target::LlvmTarget;
use cubecl_llvm::{PlironArtifact, PlironCompiler, PlironOptions};

pub(crate) use super::{ELEMENTWISE_UNITS, ROW_UNITS};

/// A CUDA version whose PTX all drivers of sm_90 read: 12.8.
const DRIVER: i32 = 12_080;

/// A kernel compiled for a GPU.
#[derive(Debug)]
pub struct Ptx {
    /// Operation and kernel, and the values that were fixed when it was compiled.
    pub name: String,
    /// Threads of a block.
    pub threads: usize,
    /// Shared memory that a launch gives each block, in bytes.
    pub shared_memory: usize,
    /// The assembly.
    pub text: String,
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The architecture's number: 80, 90.
    pub sm: u32,
    /// Type of weights and activations.
    pub elements: ElemType,
}

impl Target {
    /// Compiles `kernel`, which was made with [`settings`], [`device`] and [`properties`].
    ///
    /// # Panics
    /// If the kernel does not compile.
    pub fn compile(self, name: &str, threads: usize, kernel: impl CubeKernel) -> Ptx {
        let mut compiler = PlironCompiler { target: LlvmTarget::Nvptx };
        let options = PlironOptions {
            sm_arch: Some(SmArch::new(self.sm, false)),
            ptx_version: PtxVersion::for_driver(DRIVER),
            ..Default::default()
        };
        let artifact = compiler.compile(kernel.define(), &options);
        let PlironArtifact::NvptxCode(module) = artifact.expect("the kernel compiles") else {
            unreachable!("this target gives PTX");
        };
        // SAFETY: the text ends with a zero.
        let text = unsafe { CStr::from_ptr(module.ptx.as_ptr()) };
        let name = format!("{name}, {}", self.elements);
        let shared_memory = module.shared_memory_size;
        Ptx { name, threads, shared_memory, text: text.to_string_lossy().into_owned() }
    }
}

/// The settings of an unchecked launch with blocks of `threads`.
pub(crate) fn settings(threads: usize) -> KernelSettings {
    let cube = CubeDim::new_1d(threads as u32);
    KernelSettings::new(cube.into(), ExecutionMode::Unchecked, AddressType::U32)
}

/// A GPU as far as kernels ask for it.
pub(crate) fn device() -> Arc<DeviceProperties> {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: SHARED_MEMORY,
        max_cube_count: (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    Arc::new(DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 256),
        hardware,
        TimingMethod::Device,
        DeviceIdentity { name: "offline".into(), fingerprint: "offline".into(), physical: None },
    ))
}

/// Shared memory of a block on sm_80, in bytes.
pub(crate) const SHARED_MEMORY: usize = 163 << 10;

pub(crate) fn properties() -> Arc<TargetProperties> {
    Arc::new(TargetProperties::default())
}

/// A buffer argument that no other argument shares.
pub(crate) fn argument() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}
