#include "kernels.h"

#include <cstdlib>
#include <string>

#include "xla/ffi/api/c_api.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// The kernels of an instruction set in the order of Kernels: those for floats, and those for bytes.
#define FLOATS(set)                                                                            \
  ttt_linear_##set, ttt_mlp_##set, convolution_##set, attention_##set, norm_##set, gate_##set, \
      argmax_##set, product_##set
#define BYTES(set) packed_##set, table_##set, grouped_##set

namespace bitttt {
namespace {

#if defined(__x86_64__)

// Features that older compilers don't know by name: bits of leaf 7.
bool has_feature(int subleaf, int reg, int bit) {
  unsigned regs[4] = {};
  return __get_cpuid_count(7, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]) &&
         (regs[reg] >> bit & 1);
}

Kernels choose_kernels() {
  const char* variable = std::getenv("BITTTT_INSTRUCTION_SET");
  const std::string asked = variable ? variable : "";
  const auto wanted = [&](const char* name) { return asked.empty() || asked == name; };
  const auto with = [](const char* name, const PackedTable& packed, const TableTable& table,
                       const GroupedTable& grouped) -> Kernels {
    return {name, FLOATS(avx512), packed, table, grouped};
  };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#if !defined(WITHOUT_AMX)
  const bool amx = avx512vnni && has_feature(0, 3, 24) && has_feature(0, 3, 25);
  if (amx && wanted("amx") && may_use_amx()) {
    Kernels kernels = with("amx", packed_avx512vnni, table_avx512vnni, grouped_avx512vnni);
    kernels.table.arrange = arrange_table_amx;
    kernels.table.multiply_arranged = multiply_table_amx;
    kernels.packed.many_rows = kManyRowsOfAmx;
    kernels.packed.arrange = arrange_amx;
    kernels.packed.multiply_many = multiply_many_amx;
    kernels.packed.multiply_many_bfloat16 = multiply_many_amx;
    return kernels;
  }
#endif
  if (avx512vnni && wanted("avx512vnni")) {
    return with("avx512vnni", packed_avx512vnni, table_avx512vnni, grouped_avx512vnni);
  }
  if (avx512 && wanted("avx512")) return with("avx512", packed_avx2, table_avx2, grouped_avx2);
#if !defined(WITHOUT_AVXVNNI)
  if (avx2 && has_feature(1, 0, 4) && wanted("avxvnni")) {
    return {"avxvnni", FLOATS(avx2), BYTES(avxvnni)};
  }
#endif
  if (avx2 && wanted("avx2")) {
    return {"avx2", FLOATS(avx2), BYTES(avx2)};
  }
  return {"baseline", FLOATS(baseline), BYTES(baseline)};
}

#else

Kernels choose_kernels() {
#if defined(__aarch64__)
#if defined(__linux__)
  const bool has_dot_products = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  const bool has_dot_products = true;
#endif
  if (has_dot_products) {
    return {"neon", FLOATS(neon), BYTES(neon)};
  }
#endif
  return {"baseline", FLOATS(baseline), BYTES(baseline)};
}

#endif

}  // namespace

// The widest that the CPU has, or the one that BITTTT_INSTRUCTION_SET names if the CPU has it.
const Kernels& kernels() {
  static const Kernels chosen = choose_kernels();
  return chosen;
}

}  // namespace bitttt

// The version of XLA's interface that the library was compiled for: later ones take it too.
extern "C" int interface_version() { return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR; }

// The instruction set in use.
extern "C" const char* instruction_set() { return bitttt::kernels().instruction_set; }
