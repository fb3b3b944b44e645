//! The WASI version of a module, which selects its engine, and the settings that compiled code depends on.
//!
//! A component belongs to WASI 0.3 if it imports or exports an interface of that version. It may import interfaces of 0.2
//! as well: standard libraries do.

use std::path::Path;

use super::inspect::inspect_valid;
use super::load::CodeKind;
use crate::host::wasi_version::{WasiVersion, is_wasi_0_3};
use runtime_api::{Inspection, LoadError, MODULE_BYTES_MAX, Metering};

/// The version by the names of imports and exports.
fn version_of(found: &Inspection) -> WasiVersion {
    match found.imports.iter().chain(&found.exports).any(|name| is_wasi_0_3(name)) {
        true => WasiVersion::V0_3,
        false => WasiVersion::V0_2,
    }
}

/// The settings of an engine that its compiled code depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CodeSettings {
    pub(crate) metering: Metering,
    pub(crate) wasi: WasiVersion,
}

impl CodeSettings {
    /// The number of all settings.
    pub(crate) const COUNT: usize = 4;

    pub(crate) const fn new(metering: Metering, wasi: WasiVersion) -> Self {
        Self { metering, wasi }
    }

    /// All settings, each at its [`CodeSettings::index`].
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::new(Metering::Epochs, WasiVersion::V0_2),
        Self::new(Metering::Fuel, WasiVersion::V0_2),
        Self::new(Metering::Epochs, WasiVersion::V0_3),
        Self::new(Metering::Fuel, WasiVersion::V0_3),
    ];

    /// A number below [`CodeSettings::COUNT`].
    pub(crate) const fn index(self) -> usize {
        let wasi = match self.wasi {
            WasiVersion::V0_2 => 0,
            WasiVersion::V0_3 => 2,
        };
        let metering = match self.metering {
            Metering::Epochs => 0,
            Metering::Fuel => 1,
        };
        wasi + metering
    }
}

/// What a module's file says about its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModuleForm {
    pub(crate) kind: CodeKind,
    pub(crate) wasi: WasiVersion,
}

impl ModuleForm {
    /// Reads the form of a module. Linear in its size; an invalid component counts as one of 0.2, which its compilation
    /// rejects.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        let kind = CodeKind::of(bytes)?;
        let wasi = match kind {
            CodeKind::Module => WasiVersion::V0_2,
            CodeKind::Component => inspect_valid(bytes).map_or(WasiVersion::V0_2, |found| version_of(&found)),
        };
        Ok(Self { kind, wasi })
    }

    /// The same of a file.
    ///
    /// # Errors
    /// The file can't be read, is too large, or is no module.
    pub(crate) async fn of_file(file: &Path) -> Result<Self, LoadError> {
        let reading = || LoadError::io("reading the module");
        let bytes = tokio::fs::metadata(file).await.map_err(reading())?.len();
        if bytes > MODULE_BYTES_MAX {
            return Err(LoadError::TooLarge { bytes, max_bytes: MODULE_BYTES_MAX });
        }
        Self::of(&tokio::fs::read(file).await.map_err(reading())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_its_own_index() {
        for (index, settings) in CodeSettings::ALL.iter().enumerate() {
            assert_eq!(settings.index(), index, "{settings:?}");
        }
    }

    #[test]
    fn one_interface_of_0_3_selects_its_engine() {
        let of = |text: &str| ModuleForm::of(&wat::parse_str(text).unwrap()).unwrap().wasi;
        let plain = r#"(import "wasi:io/poll@0.2.3" (instance))"#;
        assert_eq!(of("(module)"), WasiVersion::V0_2);
        assert_eq!(of(&format!("(component {plain})")), WasiVersion::V0_2);
        for newer in ["wasi:clocks/types@0.3.0", "wasi:cli/run@0.3.2", "wasi:http/types@0.3.0-rc-2026-03-15"] {
            assert_eq!(of(&format!(r#"(component {plain} (import "{newer}" (instance)))"#)), WasiVersion::V0_3);
        }
        for other in ["acme:cli/run@0.3.0", "wasi:cli/run@0.30.0", "wasi:keyvalue/store@0.2.0-draft2"] {
            assert_eq!(of(&format!(r#"(component (import "{other}" (instance)))"#)), WasiVersion::V0_2, "{other}");
        }
    }
}
