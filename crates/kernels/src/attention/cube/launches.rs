//! The arguments that all attention kernels have, for launches and for their PTX.
//!
//! CubeCL writes a function of its own for each kernel, so macros name the common arguments.

/// Launches a kernel with a cube for each tile of the table `$table` and each of `$heads` heads of
/// the layout. `$more` are the buffers between the tables and the sizes.
macro_rules! launch {
    ($($kernel:ident)::+, $call:expr, ($table:ident, $heads:ident), ($units:expr, $shape:expr),
     [$($more:expr),*]) => {{
        use $crate::cube::{address, buffer, cubes, elements};
        let (prepared, layout) = ($call.prepared, $call.layout);
        let table = &prepared.$table;
        let (count, cube) = cubes(table.len * layout.$heads, $units);
        // SAFETY: the table has tokens of the batch only, and each in one tile.
        unsafe {
            $($kernel)::+::launch_unchecked(
                &$call.q.client,
                count,
                cube,
                address([&$call.q, &$call.k]),
                buffer(&$call.q),
                buffer(&$call.k),
                buffer(&$call.v),
                buffer(&prepared.cos),
                buffer(&prepared.sin),
                buffer(&table.tiles),
                buffer(&table.spans),
                $(buffer($more),)*
                layout.heads,
                layout.kv_heads,
                layout.window.unwrap_or($crate::attention::cube::NO_WINDOW),
                layout.scale(),
                layout.softcap.unwrap_or($crate::cube::soft_cap::NO_CAP),
                $shape,
                elements($call.q.dtype),
            );
        }
    }};
}

/// A kernel as PTX. `$kernel` is the type that CubeCL writes for it; `$more` names the buffers
/// between the tables and the sizes.
#[cfg(feature = "ptx")]
macro_rules! as_ptx {
    ($($kernel:ident)::+, $target:expr, $name:expr, ($units:expr, $shape:expr),
     [$($more:ident),*]) => {{
        use $crate::cube::ptx::{argument, device, properties, settings};
        let kernel = $($kernel)::+::new(
            settings($units),
            device(),
            properties(),
            argument(),
            argument(),
            argument(),
            argument(),
            argument(),
            argument(),
            argument(),
            $({
                let _: &str = stringify!($more);
                argument()
            },)*
            (),
            (),
            (),
            (),
            (),
            $shape,
            $target.elements,
        );
        $target.compile(&$name, $units, kernel)
    }};
}

#[cfg(feature = "ptx")]
pub(super) use as_ptx;
pub(super) use launch;
