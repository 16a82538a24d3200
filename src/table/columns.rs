//! How do structs become the columns of a data frame, and back? Each column is listed once, in the declaration of its
//! struct.

use polars::prelude::{DataFrame, DataType, NamedFrom, PolarsError, Series};

use crate::error::{Error, Result};

/// Declares a struct with ordinary fields and with fields that are columns: `Option<kind>`, `None` if the column does
/// not apply. Columns appear in a table in the order of their declaration, and everything that a table does with them
/// derives from it.
macro_rules! columns {
    (
        $(#[$about:meta])*
        pub struct $type:ident {
            $($(#[$of_own:meta])* pub $own:ident: $own_type:ty,)*
            columns
            $($(#[$of_column:meta])* pub $name:ident: $kind:ty,)*
        }
    ) => {
        $(#[$about])*
        pub struct $type {
            $($(#[$of_own])* pub $own: $own_type,)*
            $($(#[$of_column])* pub $name: Option<$kind>,)*
        }

        impl $type {
            /// All columns of `rows`, including empty ones.
            fn to_columns<'a>(rows: impl Iterator<Item = &'a Self> + Clone) -> Vec<polars::prelude::Series> {
                use $crate::table::columns::Cell;
                vec![$(<$kind>::to_column(stringify!($name), rows.clone().map(|row| row.$name.as_ref()))),*]
            }

            /// Fills in `rows`, one for each row of the frame, from the columns that the frame has.
            fn read_columns(frame: &polars::prelude::DataFrame, rows: &mut [&mut Self]) -> $crate::error::Result<()> {
                use $crate::table::columns::Cell;
                $(
                    let column = <$kind>::read_column(frame, stringify!($name))?;
                    rows.iter_mut().zip(column.into_iter().flatten()).for_each(|(row, value)| row.$name = value);
                )*
                Ok(())
            }
        }
    };
}
pub(super) use columns;

/// A type that a column can hold.
pub(super) trait Cell: Sized + 'static {
    fn to_column<'a>(name: &str, values: impl Iterator<Item = Option<&'a Self>>) -> Series;

    /// A column of this type; `None` if the frame has no column of this name.
    fn read_column(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<Self>>>>;
}

impl Cell for String {
    fn to_column<'a>(name: &str, values: impl Iterator<Item = Option<&'a Self>>) -> Series {
        let texts: Vec<Option<&str>> = values.map(|text| text.map(String::as_str)).collect();
        Series::new(name.into(), texts)
    }

    fn read_column(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<Self>>>> {
        let Ok(column) = frame.column(name) else { return Ok(None) };
        let doing = || Error::table(format!("reading column `{name}` as texts"));
        let column = column.cast(&DataType::String).map_err(doing())?;
        Ok(Some(column.str().map_err(doing())?.iter().map(|text| text.map(str::to_owned)).collect()))
    }
}

impl Cell for u64 {
    fn to_column<'a>(name: &str, values: impl Iterator<Item = Option<&'a Self>>) -> Series {
        Series::new(name.into(), values.map(|value| value.copied()).collect::<Vec<_>>())
    }

    fn read_column(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<Self>>>> {
        let Ok(column) = frame.column(name) else { return Ok(None) };
        let doing = || Error::table(format!("reading column `{name}` as whole numbers"));
        let column = column.strict_cast(&DataType::UInt64).map_err(doing())?;
        Ok(Some(column.u64().map_err(doing())?.iter().collect()))
    }
}

impl Cell for u32 {
    fn to_column<'a>(name: &str, values: impl Iterator<Item = Option<&'a Self>>) -> Series {
        Series::new(name.into(), values.map(|value| value.copied()).collect::<Vec<_>>())
    }

    fn read_column(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<Self>>>> {
        let Some(column) = u64::read_column(frame, name)? else { return Ok(None) };
        let small = |value: Option<u64>| value.map(Self::try_from).transpose();
        let column: Result<_, _> = column.into_iter().map(small).collect();
        let large = || PolarsError::SchemaMismatch("expected numbers below 2^32, found a larger one".into());
        column.map(Some).map_err(|_| Error::table(format!("reading column `{name}`"))(large()))
    }
}

/// NaN is written as a missing value.
impl Cell for f64 {
    fn to_column<'a>(name: &str, values: impl Iterator<Item = Option<&'a Self>>) -> Series {
        Series::new(name.into(), values.map(|value| value.copied().filter(|n| !n.is_nan())).collect::<Vec<_>>())
    }

    fn read_column(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<Self>>>> {
        let Ok(column) = frame.column(name) else { return Ok(None) };
        let doing = || Error::table(format!("reading column `{name}` as numbers"));
        if column.dtype() == &DataType::String {
            return Err(doing()(PolarsError::SchemaMismatch("expected numbers, found texts".into())));
        }
        let column = column.cast(&DataType::Float64).map_err(doing())?;
        Ok(Some(column.f64().map_err(doing())?.iter().map(|value| value.filter(|n| !n.is_nan())).collect()))
    }
}
