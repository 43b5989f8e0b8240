//! Every operation that a backend has to have, handed on to flex; [`lie`](super::lie) may change what
//! comes back of some of them.

use std::future::Future;

use burn::tensor::backend::{Backend, BackendTypes, DTypeUsageSet, ExecutionError};
use burn::tensor::ops::*;
use burn::tensor::quantization::{QuantScheme, QuantizationParametersPrimitive};
use burn::tensor::{
    BoolDType, DType, Distribution, FloatDType, IntDType, Scalar, Shape, Slice, TensorData,
};
use burn_flex::{Flex, FlexDevice, FlexQTensor, FlexTensor};

use super::{Liar, lie};

type T = FlexTensor;
type Q = FlexQTensor;

macro_rules! delegate {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name($($arg: $type),*) -> $out {
            Flex::$name($($arg),*)
        })*
    };
}

macro_rules! lie {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name($($arg: $type),*) -> $out {
            lie::$name($($arg),*)
        })*
    };
}

impl BackendTypes for Liar {
    type Device = FlexDevice;
    type FloatTensorPrimitive = T;
    type FloatElem = f32;
    type IntTensorPrimitive = T;
    type IntElem = i32;
    type BoolTensorPrimitive = T;
    type BoolElem = bool;
    type QuantizedTensorPrimitive = Q;
}

impl Backend for Liar {
    delegate! {
        seed(device: &FlexDevice, seed: u64) -> ();
        dtype_usage(device: &FlexDevice, dtype: DType) -> DTypeUsageSet;
        device_count(type_id: u16) -> usize;
    }

    fn name(_device: &FlexDevice) -> String {
        "liar".into()
    }
}

impl FloatTensorOps<Self> for Liar {
    delegate! {
        float_from_data(data: TensorData, device: &FlexDevice) -> T;
        float_random(shape: Shape, distribution: Distribution, device: &FlexDevice, dtype: FloatDType) -> T;
        float_into_data(tensor: T) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
        float_device(tensor: &T) -> FlexDevice;
        float_to_device(tensor: T, device: &FlexDevice) -> T;
        float_into_int(tensor: T, out_dtype: IntDType) -> T;
        float_empty(shape: Shape, device: &FlexDevice, dtype: FloatDType) -> T;
        float_add(lhs: T, rhs: T) -> T;
        float_add_scalar(lhs: T, rhs: Scalar) -> T;
        float_sub(lhs: T, rhs: T) -> T;
        float_sub_scalar(lhs: T, rhs: Scalar) -> T;
        float_mul(lhs: T, rhs: T) -> T;
        float_mul_scalar(lhs: T, rhs: Scalar) -> T;
        float_div(lhs: T, rhs: T) -> T;
        float_div_scalar(lhs: T, rhs: Scalar) -> T;
        float_remainder(lhs: T, rhs: T) -> T;
        float_remainder_scalar(lhs: T, rhs: Scalar) -> T;
        float_cross(lhs: T, rhs: T, dim: usize) -> T;
        float_recip(tensor: T) -> T;
        float_swap_dims(tensor: T, dim1: usize, dim2: usize) -> T;
        float_permute(tensor: T, axes: &[usize]) -> T;
        float_flip(tensor: T, axes: &[usize]) -> T;
        float_reshape(tensor: T, shape: Shape) -> T;
        float_scatter_add(dim: usize, tensor: T, indices: T, value: T) -> T;
        float_select(tensor: T, dim: usize, indices: T) -> T;
        float_slice(tensor: T, slices: &[Slice]) -> T;
        float_slice_assign(tensor: T, slices: &[Slice], value: T) -> T;
        float_mask_where(tensor: T, mask: T, value: T) -> T;
        float_mask_fill(tensor: T, mask: T, value: Scalar) -> T;
        float_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        float_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        float_greater(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        float_greater_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        float_greater_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        float_greater_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        float_lower(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        float_lower_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        float_lower_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        float_sum(tensor: T) -> T;
        float_mean_dim(tensor: T, dim: usize) -> T;
        float_cumsum(tensor: T, dim: usize) -> T;
        float_cumprod(tensor: T, dim: usize) -> T;
        float_cummin(tensor: T, dim: usize) -> T;
        float_cummax(tensor: T, dim: usize) -> T;
        float_cast(tensor: T, dtype: FloatDType) -> T;
        float_log(tensor: T) -> T;
        float_log1p(tensor: T) -> T;
        float_powf(lhs: T, rhs: T) -> T;
        float_powf_scalar_impl(tensor: T, value: Scalar) -> T;
        float_sqrt(tensor: T) -> T;
        float_abs(tensor: T) -> T;
        float_cos(tensor: T) -> T;
        float_sin(tensor: T) -> T;
        float_tan(tensor: T) -> T;
        float_cosh(tensor: T) -> T;
        float_sinh(tensor: T) -> T;
        float_acos(tensor: T) -> T;
        float_acosh(tensor: T) -> T;
        float_asin(tensor: T) -> T;
        float_asinh(tensor: T) -> T;
        float_atan(tensor: T) -> T;
        float_atanh(tensor: T) -> T;
        float_atan2(lhs: T, rhs: T) -> T;
        float_round(tensor: T) -> T;
        float_floor(tensor: T) -> T;
        float_ceil(tensor: T) -> T;
        float_trunc(tensor: T) -> T;
        float_erf(tensor: T) -> T;
        float_argtopk(tensor: T, dim: usize, k: usize, out_dtype: IntDType) -> T;
        float_argmin(tensor: T, dim: usize, out_dtype: IntDType) -> T;
        float_expand(tensor: T, shape: Shape) -> T;
        float_unfold(tensor: T, dim: usize, size: usize, step: usize) -> T;
    }

    lie! {
        float_matmul(lhs: T, rhs: T) -> T;
        float_gather(dim: usize, tensor: T, indices: T) -> T;
        float_select_add(tensor: T, dim: usize, indices: T, value: T) -> T;
        float_lower_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        float_sum_dim(tensor: T, dim: usize) -> T;
        float_exp(tensor: T) -> T;
        float_tanh(tensor: T) -> T;
        float_argmax(tensor: T, dim: usize, out_dtype: IntDType) -> T;
    }
}

impl IntTensorOps<Self> for Liar {
    delegate! {
        int_empty(shape: Shape, device: &FlexDevice, dtype: IntDType) -> T;
        int_into_data(tensor: T) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
        int_from_data(data: TensorData, device: &FlexDevice) -> T;
        int_device(tensor: &T) -> FlexDevice;
        int_to_device(tensor: T, device: &FlexDevice) -> T;
        int_reshape(tensor: T, shape: Shape) -> T;
        int_slice(tensor: T, slices: &[Slice]) -> T;
        int_slice_assign(tensor: T, slices: &[Slice], value: T) -> T;
        int_into_float(tensor: T, out_dtype: FloatDType) -> T;
        int_mask_where(tensor: T, mask: T, value: T) -> T;
        int_mask_fill(tensor: T, mask: T, value: Scalar) -> T;
        int_gather(dim: usize, tensor: T, indices: T) -> T;
        int_scatter_add(dim: usize, tensor: T, indices: T, value: T) -> T;
        int_select(tensor: T, dim: usize, indices: T) -> T;
        int_select_add(tensor: T, dim: usize, indices: T, value: T) -> T;
        int_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        int_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        int_greater(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        int_greater_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        int_greater_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        int_greater_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        int_lower(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        int_lower_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        int_lower_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T;
        int_lower_equal_elem(lhs: T, rhs: Scalar, out_dtype: BoolDType) -> T;
        int_add(lhs: T, rhs: T) -> T;
        int_add_scalar(lhs: T, rhs: Scalar) -> T;
        int_sub(lhs: T, rhs: T) -> T;
        int_sub_scalar(lhs: T, rhs: Scalar) -> T;
        int_mul(lhs: T, rhs: T) -> T;
        int_mul_scalar(lhs: T, rhs: Scalar) -> T;
        int_div(lhs: T, rhs: T) -> T;
        int_div_scalar(lhs: T, rhs: Scalar) -> T;
        int_remainder(lhs: T, rhs: T) -> T;
        int_remainder_scalar(lhs: T, rhs: Scalar) -> T;
        int_matmul(lhs: T, rhs: T) -> T;
        int_sum(tensor: T) -> T;
        int_sum_dim(tensor: T, dim: usize) -> T;
        int_prod(tensor: T) -> T;
        int_prod_dim(tensor: T, dim: usize) -> T;
        int_mean_dim(tensor: T, dim: usize) -> T;
        int_cumsum(tensor: T, dim: usize) -> T;
        int_cumprod(tensor: T, dim: usize) -> T;
        int_cummin(tensor: T, dim: usize) -> T;
        int_cummax(tensor: T, dim: usize) -> T;
        int_argmax(tensor: T, dim: usize) -> T;
        int_argtopk(tensor: T, dim: usize, k: usize) -> T;
        int_argmin(tensor: T, dim: usize) -> T;
        int_abs(tensor: T) -> T;
        int_swap_dims(tensor: T, dim1: usize, dim2: usize) -> T;
        int_permute(tensor: T, axes: &[usize]) -> T;
        int_flip(tensor: T, axes: &[usize]) -> T;
        int_random(shape: Shape, distribution: Distribution, device: &FlexDevice, dtype: IntDType) -> T;
        int_expand(tensor: T, shape: Shape) -> T;
        bitwise_and(lhs: T, rhs: T) -> T;
        bitwise_and_scalar(lhs: T, rhs: Scalar) -> T;
        bitwise_or(lhs: T, rhs: T) -> T;
        bitwise_or_scalar(lhs: T, rhs: Scalar) -> T;
        bitwise_xor(lhs: T, rhs: T) -> T;
        bitwise_xor_scalar(lhs: T, rhs: Scalar) -> T;
        bitwise_not(tensor: T) -> T;
        bitwise_left_shift(lhs: T, rhs: T) -> T;
        bitwise_left_shift_scalar(lhs: T, rhs: Scalar) -> T;
        bitwise_right_shift(lhs: T, rhs: T) -> T;
        bitwise_right_shift_scalar(lhs: T, rhs: Scalar) -> T;
        int_cast(tensor: T, dtype: IntDType) -> T;
        int_unfold(tensor: T, dim: usize, size: usize, step: usize) -> T;
    }
}

impl BoolTensorOps<Self> for Liar {
    delegate! {
        bool_empty(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> T;
        bool_zeros(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> T;
        bool_ones(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> T;
        bool_into_data(tensor: T) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
        bool_from_data(data: TensorData, device: &FlexDevice) -> T;
        bool_into_int(tensor: T, out_dtype: IntDType) -> T;
        bool_into_float(tensor: T, out_dtype: FloatDType) -> T;
        bool_device(tensor: &T) -> FlexDevice;
        bool_to_device(tensor: T, device: &FlexDevice) -> T;
        bool_reshape(tensor: T, shape: Shape) -> T;
        bool_slice(tensor: T, slices: &[Slice]) -> T;
        bool_slice_assign(tensor: T, slices: &[Slice], value: T) -> T;
        bool_mask_where(tensor: T, mask: T, value: T) -> T;
        bool_mask_fill(tensor: T, mask: T, value: Scalar) -> T;
        bool_gather(dim: usize, tensor: T, indices: T) -> T;
        bool_scatter_or(dim: usize, tensor: T, indices: T, value: T) -> T;
        bool_select(tensor: T, dim: usize, indices: T) -> T;
        bool_select_or(tensor: T, dim: usize, indices: T, value: T) -> T;
        bool_equal(lhs: T, rhs: T) -> T;
        bool_equal_elem(lhs: T, rhs: Scalar) -> T;
        bool_not(tensor: T) -> T;
        bool_and(lhs: T, rhs: T) -> T;
        bool_or(lhs: T, rhs: T) -> T;
        bool_swap_dims(tensor: T, dim1: usize, dim2: usize) -> T;
        bool_permute(tensor: T, axes: &[usize]) -> T;
        bool_flip(tensor: T, axes: &[usize]) -> T;
        bool_expand(tensor: T, shape: Shape) -> T;
        bool_unfold(tensor: T, dim: usize, size: usize, step: usize) -> T;
    }
}

impl QTensorOps<Self> for Liar {
    delegate! {
        q_from_data(data: TensorData, device: &FlexDevice) -> Q;
        dequantize(tensor: Q, dtype: FloatDType) -> T;
        q_device(tensor: &Q) -> FlexDevice;
        q_to_device(tensor: Q, device: &FlexDevice) -> Q;
        q_reshape(tensor: Q, shape: Shape) -> Q;
        q_into_data(tensor: Q) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
        q_expand(tensor: Q, shape: Shape) -> Q;
        q_swap_dims(tensor: Q, dim1: usize, dim2: usize) -> Q;
        q_permute(tensor: Q, axes: &[usize]) -> Q;
        q_flip(tensor: Q, axes: &[usize]) -> Q;
        q_select(tensor: Q, dim: usize, indices: T) -> Q;
        q_slice(tensor: Q, slices: &[Slice]) -> Q;
    }

    fn quantize(
        tensor: T,
        scheme: &QuantScheme,
        qparams: QuantizationParametersPrimitive<Self>,
    ) -> Q {
        let qparams = QuantizationParametersPrimitive { scales: qparams.scales };
        Flex::quantize(tensor, scheme, qparams)
    }
}

impl ModuleOps<Self> for Liar {
    delegate! {
        conv2d(x: T, weight: T, bias: Option<T>, options: ConvOptions<2>) -> T;
        conv3d(x: T, weight: T, bias: Option<T>, options: ConvOptions<3>) -> T;
        conv_transpose2d(x: T, weight: T, bias: Option<T>, options: ConvTransposeOptions<2>) -> T;
        conv_transpose3d(x: T, weight: T, bias: Option<T>, options: ConvTransposeOptions<3>) -> T;
        deform_conv2d(x: T, offset: T, weight: T, mask: Option<T>, bias: Option<T>, options: DeformConvOptions<2>) -> T;
        avg_pool2d(x: T, size: [usize; 2], stride: [usize; 2], padding: [usize; 2], count_pad: bool, ceil: bool) -> T;
        avg_pool2d_backward(x: T, grad: T, size: [usize; 2], stride: [usize; 2], padding: [usize; 2], count_pad: bool, ceil: bool) -> T;
        adaptive_avg_pool2d(x: T, output_size: [usize; 2]) -> T;
        adaptive_avg_pool2d_backward(x: T, grad: T) -> T;
        max_pool2d(x: T, size: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], ceil: bool) -> T;
        interpolate(x: T, output_size: [usize; 2], options: InterpolateOptions) -> T;
        interpolate_backward(x: T, grad: T, output_size: [usize; 2], options: InterpolateOptions) -> T;
        attention(q: T, k: T, v: T, mask: Option<T>, bias: Option<T>, options: AttentionModuleOptions) -> T;
        rfft(signal: T, dim: usize, n: Option<usize>) -> (T, T);
        irfft(re: T, im: T, dim: usize, n: Option<usize>) -> T;
    }

    fn deform_conv2d_backward(
        x: T,
        offset: T,
        weight: T,
        mask: Option<T>,
        bias: Option<T>,
        grad: T,
        options: DeformConvOptions<2>,
    ) -> DeformConv2dBackward<Self> {
        let all = Flex::deform_conv2d_backward(x, offset, weight, mask, bias, grad, options);
        DeformConv2dBackward {
            x_grad: all.x_grad,
            offset_grad: all.offset_grad,
            weight_grad: all.weight_grad,
            mask_grad: all.mask_grad,
            bias_grad: all.bias_grad,
        }
    }

    fn max_pool2d_with_indices(
        x: T,
        size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        dilation: [usize; 2],
        ceil: bool,
    ) -> MaxPool2dWithIndices<Self> {
        let all = Flex::max_pool2d_with_indices(x, size, stride, padding, dilation, ceil);
        MaxPool2dWithIndices { output: all.output, indices: all.indices }
    }

    fn max_pool2d_with_indices_backward(
        x: T,
        size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        dilation: [usize; 2],
        ceil: bool,
        grad: T,
        places: T,
    ) -> MaxPool2dBackward<Self> {
        let all = Flex::max_pool2d_with_indices_backward(
            x, size, stride, padding, dilation, ceil, grad, places,
        );
        MaxPool2dBackward { x_grad: all.x_grad }
    }
}

impl ActivationOps<Self> for Liar {}

impl TransactionOps<Self> for Liar {}
