//! One value for each log type.

use std::array;
use std::iter::Zip;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use super::log_type::LogType;

const TYPES: usize = LogType::ALL.len();

/// One `T` for each log type, in the order of [`LogType::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByType<T>([T; TYPES]);

impl<T> ByType<T> {
    /// Calls `make` for each log type.
    pub fn new(make: impl FnMut(LogType) -> T) -> ByType<T> {
        ByType(LogType::ALL.map(make))
    }

    /// Calls `change` with each value.
    pub fn map<U>(self, mut change: impl FnMut(LogType, T) -> U) -> ByType<U> {
        let [deployments, audits] = self.0;
        ByType([change(LogType::Deployments, deployments), change(LogType::Audits, audits)])
    }

    /// Calls `change` with each value.
    ///
    /// # Errors
    /// The first error of `change`; it is not called again then.
    pub fn try_map<U, E>(self, mut change: impl FnMut(LogType, T) -> Result<U, E>) -> Result<ByType<U>, E> {
        let [deployments, audits] = self.0;
        Ok(ByType([change(LogType::Deployments, deployments)?, change(LogType::Audits, audits)?]))
    }

    /// A reference to each value.
    pub fn each_ref(&self) -> ByType<&T> {
        ByType(self.0.each_ref())
    }

    /// The values of deployments and audits, in this order.
    pub fn into_array(self) -> [T; TYPES] {
        self.0
    }

    /// Each with its log type.
    pub fn iter(&self) -> impl Iterator<Item = (LogType, &T)> {
        LogType::ALL.into_iter().zip(&self.0)
    }

    /// Each with its log type.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (LogType, &mut T)> {
        LogType::ALL.into_iter().zip(&mut self.0)
    }

    /// Each without its log type.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

impl<A, B> ByType<(A, B)> {
    /// The first and the second of each pair.
    pub fn unzip(self) -> (ByType<A>, ByType<B>) {
        let [(a, b), (c, d)] = self.0;
        (ByType([a, c]), ByType([b, d]))
    }
}

impl<T> Index<LogType> for ByType<T> {
    type Output = T;

    fn index(&self, log_type: LogType) -> &T {
        &self.0[log_type as usize]
    }
}

impl<T> IndexMut<LogType> for ByType<T> {
    fn index_mut(&mut self, log_type: LogType) -> &mut T {
        &mut self.0[log_type as usize]
    }
}

impl<T> IntoIterator for ByType<T> {
    type Item = (LogType, T);
    type IntoIter = Zip<array::IntoIter<LogType, TYPES>, array::IntoIter<T, TYPES>>;

    fn into_iter(self) -> Self::IntoIter {
        LogType::ALL.into_iter().zip(self.0)
    }
}
