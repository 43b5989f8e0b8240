//! All laws on burn's flex backend.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_flex::Flex>);
