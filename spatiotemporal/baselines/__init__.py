"""placeholder"""
import numpy as np
def create_baseline(name):
    class P:
        def fit(self,grid,part,history,horizon): self.h=horizon
        def predict(self,frames,origins): return np.repeat(frames[:,-1:],self.h,1)
    return P()
