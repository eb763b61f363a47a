// Member functions in headers that sources for several instruction sets include: left to itself,
// the compiler may emit them once for all, with instructions that not every CPU has.

#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
