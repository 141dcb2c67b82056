import pytest

from gptjax.benchmark.hlo_scopes import Place, find_scope, parse_program

STACK = "jit(train_step)/while/body"
PROGRAM = f"""HloModule jit_train_step

%fused_computation.1 (param_0: f32[8,4], param_1: f32[4,4]) -> f32[8,4] {{
  %param_0 = f32[8,4]{{1,0}} parameter(0)
  %param_1 = f32[4,4]{{1,0}} parameter(1)
  %dot.1 = f32[8,4]{{1,0}} dot(%param_0, %param_1), metadata={{op_name="{STACK}/jvp(layer)/linear/dot_general"}}
  ROOT %add.1 = f32[8,4]{{1,0}} add(%dot.1, %dot.1), metadata={{op_name="{STACK}/jvp(layer)/norm/add"}}
}}

%fused_computation.2 (param_0.2: f32[8,4]) -> f32[4,8] {{
  %param_0.2 = f32[8,4]{{1,0}} parameter(0)
  ROOT %transpose.1 = f32[4,8]{{1,0}} transpose(%param_0.2), metadata={{op_name="transpose"}}
}}

%fused_computation.3 (param_0.3: f32[8,4]) -> f32[8,4] {{
  %param_0.3 = f32[8,4]{{1,0}} parameter(0)
  %exp.1 = f32[8,4]{{1,0}} exponential(%param_0.3), metadata={{op_name="{STACK}/transpose(jvp(layer))/attention/exp"}}
  ROOT %neg.1 = f32[8,4]{{1,0}} negate(%exp.1)
}}

ENTRY %main (x: f32[8,4]) -> (f32[8,4], f32[4,8]) {{
  %x = f32[8,4]{{1,0}} parameter(0), metadata={{op_name="batch[\\'tokens\\']"}}
  %linear_fusion = f32[8,4]{{1,0}} fusion(%x, %x), calls=%fused_computation.1, metadata={{op_name="jit(f)/norm/add"}}
  %move_fusion = f32[4,8]{{1,0}} fusion(%linear_fusion), calls=%fused_computation.2
  %exp_fusion = f32[8,4]{{1,0}} fusion(%x), calls=%fused_computation.3
  %all-reduce-start.1 = (f32[8,4]{{1,0}}, f32[8,4]{{1,0}}) all-reduce-start(%x), metadata={{op_name="{STACK}/psum"}}
  %while.1 = (s32[], f32[8,4]{{1,0}}) while(%x), condition=%c, body=%b, metadata={{op_name="{STACK}/jvp(loss)/while"}}
  %adam = f32[8,4]{{1,0}} multiply(%x, %x), metadata={{op_name="jit(train_step)/optimizer/mul"}}
  %lost = f32[8,4]{{1,0}} multiply(%x, %x)
  ROOT %tuple = (f32[8,4]{{1,0}}, f32[4,8]{{1,0}}) tuple(%adam, %move_fusion)
}}
"""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("linear_fusion", Place("linears", "forward")),
        ("move_fusion", Place("copies", "update")),
        ("exp_fusion", Place("attention", "backward")),
        ("all-reduce-start.1", Place("collectives", "update")),
        ("adam", Place("optimizer", "update")),
        ("lost", Place("outside any scope", "update")),
        ("while.1", None),
        ("x", None),
        ("unknown", None),
    ],
)
def test_locate_finds_part_and_pass_of_an_instruction(name: str, place: Place | None) -> None:
    assert parse_program(PROGRAM).locate(name) == place


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        (f"{STACK}/jvp(layer)/attention/exp", ("attention", "forward")),
        (f"{STACK}/transpose(jvp(norm))/mul", ("norm", "backward")),
        (f"{STACK}/transpose(jvp(layer))/checkpoint/rematted_computation/norm/mul", ("norm", "recomputed")),
        (f"{STACK}/jvp()/mul;{STACK}/jvp(norm)/mul", (None, "forward")),
        ("jit(train_step)/optimizer/newton_schulz/dot_general", ("optimizer", "update")),
        ("norm", (None, "update")),
        ("", (None, "update")),
    ],
)
def test_find_scope_takes_the_innermost_known_name(op_name: str, expected: tuple[str | None, str]) -> None:
    assert find_scope(op_name) == expected
