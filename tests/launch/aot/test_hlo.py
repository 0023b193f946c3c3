"""What the text of a program says: programs written by hand, and real ones whose work is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.aot import hlo
from launch.aot.hlo import Collective, Module

PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(f32[] %x, f32[] %y)
}

%counted (loop: (s32[], f32[3,4])) -> pred[] {
  %loop = (s32[], f32[3,4]{1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(6)
  %counter = s32[]{:T(128)} get-tuple-element(%loop), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%converged (loop.1: (s32[], f32[3,4])) -> pred[] {
  %loop.1 = (s32[], f32[3,4]{1,0}) parameter(0)
  ROOT %until = pred[] custom-call(%loop.1), custom_call_target="converged"
}

%body (loop.2: (s32[], f32[3,4])) -> (s32[], f32[3,4]) {
  %loop.2 = (s32[], f32[3,4]{1,0}) parameter(0)
  %value = f32[3,4]{1,0} get-tuple-element(%loop.2), index=1
  %all-reduce.9 = f32[3,4]{1,0} all-reduce(%value), channel_id=9, replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  %square = f32[4,4]{1,0} dot(%value, %all-reduce.9), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%body.1 (loop.3: (s32[], f32[3,4])) -> (s32[], f32[3,4]) {
  %loop.3 = (s32[], f32[3,4]{1,0}) parameter(0)
  %value.1 = f32[3,4]{1,0} get-tuple-element(%loop.3), index=1
  %permuted = f32[3,4]{1,0} collective-permute(%value.1), channel_id=10, source_target_pairs={{0,1},{1,0}}
}

%overlapped (o: f32[3,4]) -> f32[6,4] {
  %o = f32[3,4]{1,0} parameter(0)
  ROOT %gathered = f32[6,4]{1,0:T(8,128)S(1)} all-gather(%o), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

%overlapped.1 (o.1: f32[3,4]) -> f32[6,4] {
  %o.1 = f32[3,4]{1,0} parameter(0)
  ROOT %gathered.1 = f32[6,4]{1,0} all-gather(%o.1), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

%never (z: f32[3,4]) -> f32[3,4] {
  %z = f32[3,4]{1,0} parameter(0)
  ROOT %unused = f32[3,4]{1,0} all-reduce(%z), channel_id=11, replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (p: f32[3,4], q: bf16[8], table: u8[50,32]) -> (f32[3,4], bf16[16]) {
  %p = f32[3,4]{1,0} parameter(0)
  %q = bf16[8]{0} parameter(1)
  %table = u8[50,32]{1,0} parameter(2)
  %moved = u8[50,32]{0,1:T(8,128)(4,1)} copy(%table)
  %all-reduce.1 = (f32[3,4]{1,0}, bf16[8]{0}) all-reduce(%p, %q), replica_groups={{0,1}}, to_apply=%add
  %all-reduce.2 = f32[3,4]{1,0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
  %all-reduce.3 = f32[3,4]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%add
  %all-reduce.4 = f32[3,4]{1,0} all-reduce(%p), channel_id=2, replica_groups=mesh['x'=2,'y'=1] {'y'}, to_apply=%add
  %all-reduce.5 = f32[3,4]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%add
  %all-gather-start = bf16[16]{0} all-gather-start(%q), replica_groups={{0,1}}, dimensions={0}
  %all-gather-done = bf16[16]{0} all-gather-done(%all-gather-start)
  %fused = f32[6,4]{1,0} fusion(%p), kind=kCustom, calls=%overlapped
  %fused.1 = f32[6,4]{1,0} fusion(%p), kind=kCustom, calls=%overlapped.1
  %first = (s32[], f32[3,4]{1,0}) while(%start), condition=%counted, body=%body
  %second = (s32[], f32[3,4]) while(%first), condition=%x, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %third = (s32[], f32[3,4]{1,0}) while(%second), condition=%converged, body=%body.1
}
"""


def test_collectives_of_a_program():
    module = Module.of(PROGRAM)
    f32, bf16 = 3 * 4 * 4, 8 * 2
    assert sorted(module.collectives, key=str) == sorted(
        [
            Collective("all-reduce", f32 + bf16, 1, 2),
            *[Collective("all-reduce", f32, 1, 2)] * 2,  # of one channel; in all-reduce.2 and .4 nothing is sent
            Collective("all-gather", f32, 1, 2),  # in two fusions
            Collective("all-gather", bf16, 1, 2),
            Collective("all-reduce", f32, 6 + 5, 4),  # of two loops with one body
            Collective("collective-permute", f32, None, None),
        ],
        key=str,
    )
    assert not module.loops_are_known
    assert [one.total for one in module.collectives if one.times == 11] == [11 * f32]
    assert [one.total for one in module.collectives if one.times is None] == [f32]


def test_products_inside_of_loops_count_as_often_as_they_run():
    assert Module.of(PROGRAM).flops == 11 * 2 * 4 * 4 * 3


def test_whole_copies_of_arguments():
    module = Module.of(PROGRAM)
    assert module.copied(["u8[50,32]", "f32[3,4]"]) == ["u8[50,32]"] and module.copied(["u8[50]"]) == []


def test_sizes_of_shapes():
    assert hlo.nbytes("f32[]") == 4 and hlo.nbytes("(s8[3], pred[2,5])") == 13
    assert hlo.nbytes("f64[2]{0}") == 16 and hlo.nbytes("u4[4]") == 2 and hlo.nbytes("f8e4m3fn[3]") == 3


@pytest.mark.parametrize(
    "line, operations",
    [
        # cuDNN's gradient of a kernel: (image, gradient) -> kernel, with the convolution's own window and labels
        (
            "%k = (f32[16,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 stride=2x2}, "
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"',
            2 * 32 * 8 * 8 * 16 * 9 * 8,
        ),
        (
            "%k = (f32[32,17,17,8]{3,2,1,0}, u8[0]{0}) custom-call(%g, %w), window={size=3x3 stride=2x2}, "
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"',
            2 * 32 * 8 * 8 * 16 * 9 * 8,
        ),
        (
            "%k = (f32[32,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 stride=2x2}, "
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"',
            2 * 32 * 8 * 8 * 16 * 9 * 8,
        ),
        # cuBLAS
        (
            '%k = (f32[8,16]{1,0}, s8[99]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 8 * 16 * 5,
        ),
        # a convolution whose image is dilated, as in a gradient: the zeros between its entries are no work
        (
            "%k = f32[1,7,7,1]{3,2,1,0} convolution(%d, %one), "
            "window={size=1x1 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f",
            2 * 16,
        ),
    ],
)
def test_operations_by_hand(line, operations):
    shapes = {
        **{"x": "f32[32,17,17,8]", "g": "f32[32,8,8,16]", "w": "f32[16,3,3,8]"},
        **{"a": "f32[8,5]", "b": "f32[5,16]", "d": "f32[1,4,4,1]", "one": "f32[1,1,1,1]"},
    }
    given = "".join(f"  %{name} = {shape} parameter({at})\n" for at, (name, shape) in enumerate(shapes.items()))
    assert Module.of(f"ENTRY %main (a: f32[1]) -> f32[1] {{\n{given}  {line}\n}}").flops == operations


def test_operations_of_real_programs_are_those_that_xla_counts():
    """Where there is no loop; element-wise operations, of which XLA counts some, are few."""

    def loss(params, x):
        kernel, matrix = params
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.square(y.reshape(len(x), -1) @ matrix).sum()

    params = np.ones((3, 3, 8, 16), np.float32), np.ones((8 * 8 * 16, 128), np.float32)
    compiled = jax.jit(jax.grad(loss)).lower(params, np.ones((4, 16, 16, 8), np.float32)).compile()
    counted = compiled.cost_analysis()["flops"]
    assert Module.of(compiled.as_text()).flops == pytest.approx(counted, rel=0.03)


def test_a_scan_is_a_loop_of_known_length():
    def run(weights, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0]

    compiled = jax.jit(run).lower(np.ones((7, 64, 64), np.float32), np.ones((16, 64), np.float32)).compile()
    module = Module.of(compiled.as_text())
    assert module.flops == 7 * 2 * 16 * 64 * 64 and module.loops_are_known
    longest = max(module.values, key=lambda one: one[2])
    assert longest[2] >= 16 * 64 * 4
