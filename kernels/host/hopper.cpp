#include "state.h"
namespace host {
bool mbarrier_phase(const volatile void*) { return false; }
void land_tiles(Block*) {}
}
