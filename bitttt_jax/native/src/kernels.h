// The kernels of the instruction set that is in use.

#pragma once

#include "argmax.h"
#include "attention.h"
#include "convolution.h"
#include "gate.h"
#include "grouped.h"
#include "norm.h"
#include "packed.h"
#include "product.h"
#include "table.h"
#include "ttt.h"

namespace bitttt {

struct Kernels {
  const char* instruction_set;
  const TttTable &ttt_linear, &ttt_mlp;
  const ConvolutionTable& convolution;
  const AttentionTable& attention;
  const NormTable& norm;
  const GateTable& gate;
  const ArgmaxTable& argmax;
  const ProductTable& product;
  PackedTable packed;
  TableTable table;
  const GroupedTable& grouped;
};

const Kernels& kernels();

}  // namespace bitttt
