//! Where models are computed: what an operator may say, what this machine has, and why it does not work if it does not.
//!
//! Nothing here panics on a machine without a GPU, without a driver, or with a broken one: libraries are looked for before
//! the first of their functions is called.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, DeviceLocation};

use crate::kernel::Kernels;

/// Where the operator wants models to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// On the first GPU if this build can use one and the machine has one, else by the processor.
    #[default]
    Auto,
    /// By the processor.
    Cpu,
    /// On the GPU of this number, as the driver counts them.
    Cuda(usize),
}

/// Where models are computed.
#[derive(Debug, Clone)]
pub enum Place {
    /// By the processor, with our own kernels.
    Cpu,
    /// On this device, through tensors.
    Device(Device),
}

/// Why models cannot be computed where they are to be. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// What was given names no device.
    #[error("{0:?} is no device; give \"auto\", \"cpu\" or \"cuda:N\", N being the number of a GPU")]
    Unknown(String),
    /// The binary was built without CUDA.
    #[error("this build computes on the CPU only; take \"cpu\" or \"auto\", or a build with CUDA: `cargo xtask cuda`")]
    NotBuilt,
    /// A library that CUDA needs is not there.
    #[error("{library} cannot be loaded: {remedy}, or take the device \"cpu\"")]
    Library {
        /// Which one.
        library: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The driver finds no GPU, or none of this number.
    #[error(
        "there is no GPU cuda:{ordinal}: the driver finds {found}; `nvidia-smi` shows which there are, \
         CUDA_VISIBLE_DEVICES may hide some"
    )]
    Absent {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The GPU or its driver refuses.
    #[error(
        "the GPU cuda:{ordinal} does not start: {reason}; `nvidia-smi` shows whether it is well and what else uses it"
    )]
    Refused {
        /// Which one.
        ordinal: usize,
        /// What the driver said.
        reason: String,
    },
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number.
    pub ordinal: usize,
    /// What it calls itself.
    pub name: String,
    /// Its memory in bytes.
    pub memory_bytes: u64,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Which kernels that means.
            Self::Cpu => match Kernels::choose() {
                Ok(kernels) => write!(f, "cpu ({})", kernels.isa()),
                Err(_) => f.write_str("cpu"),
            },
            Self::Device(device) => match device.location() {
                DeviceLocation::Cuda { gpu_id } => write!(f, "cuda:{gpu_id}"),
                other => write!(f, "tensors on {other:?}"),
            },
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.chars().take(64).collect());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                number.and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl DeviceChoice {
    /// Starts the device. `Auto` does not fail: what cannot be started is logged, and the processor computes.
    pub fn open(self) -> Result<Place, DeviceError> {
        match self {
            Self::Cpu => Ok(Place::Cpu),
            Self::Cuda(ordinal) => cuda::open(ordinal).map(Place::Device),
            Self::Auto => match cuda::open(0) {
                Ok(device) => Ok(Place::Device(device)),
                Err(DeviceError::NotBuilt) => Ok(Place::Cpu),
                Err(reason) => {
                    tracing::info!(%reason, "models are computed by the processor");
                    Ok(Place::Cpu)
                }
            },
        }
    }
}

/// The GPUs of this machine that this build could use.
pub fn gpus() -> Result<Vec<Gpu>, DeviceError> {
    cuda::list()
}

/// Bytes of memory that are free on a device; `None` for the processor, whose memory is the system's to give.
pub(super) fn memory_free(device: &Device) -> Option<u64> {
    device.is_cuda().then(cuda::memory_free).flatten()
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{Device, DeviceError, Gpu};

    pub(super) fn open(_: usize) -> Result<Device, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    pub(super) fn list() -> Result<Vec<Gpu>, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    pub(super) fn memory_free() -> Option<u64> {
        None
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::panic::{UnwindSafe, catch_unwind};

    use candle_core::cuda_backend::cudarc::{cublas, curand, driver};

    use super::{Device, DeviceError, Gpu};

    const DRIVER: &str = "install NVIDIA's driver (in a container: run it with its GPUs)";
    const LIBRARIES: &str = "install the libraries of CUDA 13, or set LD_LIBRARY_PATH to where they are";

    pub(super) fn open(ordinal: usize) -> Result<Device, DeviceError> {
        guarded(ordinal, move || {
            let found = count(ordinal)?;
            if ordinal >= found {
                return Err(DeviceError::Absent { ordinal, found });
            }
            libraries()?;
            Device::new_cuda(ordinal).map_err(|error| DeviceError::Refused { ordinal, reason: error.to_string() })
        })
    }

    pub(super) fn list() -> Result<Vec<Gpu>, DeviceError> {
        guarded(0, || {
            let found = count(0)?;
            libraries()?;
            (0..found).map(gpu).collect()
        })
    }

    pub(super) fn memory_free() -> Option<u64> {
        driver::result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    /// The one panic we know of, that of a library that is not there, is avoided by looking; this is for those of broken
    /// or old ones.
    fn guarded<T>(
        ordinal: usize,
        look: impl FnOnce() -> Result<T, DeviceError> + UnwindSafe,
    ) -> Result<T, DeviceError> {
        let panicked = |_| DeviceError::Refused { ordinal, reason: "a library of CUDA panicked".into() };
        catch_unwind(look).map_err(panicked)?
    }

    fn gpu(ordinal: usize) -> Result<Gpu, DeviceError> {
        let look = || -> Result<Gpu, driver::DriverError> {
            let device = driver::result::device::get(ordinal as i32)?;
            // SAFETY: the device was just given out by the driver.
            let memory_bytes = unsafe { driver::result::device::total_mem(device) }? as u64;
            Ok(Gpu { ordinal, name: driver::result::device::get_name(device)?, memory_bytes })
        };
        look().map_err(|error| DeviceError::Refused { ordinal, reason: format!("{error:?}") })
    }

    /// How many GPUs the driver finds; `ordinal` is for the error.
    fn count(ordinal: usize) -> Result<usize, DeviceError> {
        // SAFETY: it loads the driver's library, as the first call of it would, and looks whether that worked.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(DeviceError::Library { library: "libcuda, the driver of NVIDIA's GPUs,", remedy: DRIVER });
        }
        let count = driver::result::init().and_then(|()| driver::result::device::get_count());
        match count {
            Ok(count) => Ok(count.max(0) as usize),
            Err(driver::DriverError(driver::sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            Err(error) => Err(DeviceError::Refused { ordinal, reason: format!("{error:?}") }),
        }
    }

    /// The libraries that candle opens together with a device.
    fn libraries() -> Result<(), DeviceError> {
        // SAFETY: as above.
        let present =
            unsafe { [("libcublas", cublas::sys::is_culib_present()), ("libcurand", curand::sys::is_culib_present())] };
        match present.iter().find(|(_, is_there)| !is_there) {
            Some((library, _)) => Err(DeviceError::Library { library, remedy: LIBRARIES }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        let check = |text: &str, expected: Option<DeviceChoice>| {
            let read: Result<DeviceChoice, _> = text.parse();
            match expected {
                Some(choice) => assert_eq!(read, Ok(choice), "{text}"),
                None => assert_eq!(read, Err(DeviceError::Unknown(text.into())), "{text}"),
            }
        };
        check("auto", Some(DeviceChoice::Auto));
        check("cpu", Some(DeviceChoice::Cpu));
        check("cuda", Some(DeviceChoice::Cuda(0)));
        check("cuda:0", Some(DeviceChoice::Cuda(0)));
        check("cuda:12", Some(DeviceChoice::Cuda(12)));
        for text in
            ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:99999999999999999999", "cuda:0,1"]
        {
            check(text, None);
        }
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    /// Whatever this machine has, looking does not panic, and `auto` finds a place.
    #[test]
    fn looking_for_devices_never_panics() {
        assert!(DeviceChoice::Auto.open().is_ok());
        assert!(matches!(DeviceChoice::Cpu.open(), Ok(Place::Cpu)));
        match (gpus(), DeviceChoice::Cuda(usize::MAX).open()) {
            (Ok(found), Err(DeviceError::Absent { found: count, .. })) => assert_eq!(found.len(), count),
            (Err(one), Err(other)) => assert_eq!(one, other),
            (gpus, place) => panic!("{gpus:?} beside {place:?}"),
        }
    }
}
